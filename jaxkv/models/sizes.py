"""The sizes of what a layer attends with, where that is not grouped queries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Sizes(ABC):
    """What the cache and the trainer need to know of a way to attend."""

    kind: ClassVar[str]  # its name in config.json
    values_apart: ClassVar[bool]  # a slot holds a key and a value; else both in one
    by_head: ClassVar[bool]  # a row is a kv head's own; else one is all heads'
    equal_keys: ClassVar[bool] = False  # all keys of a kv head have one length

    @property
    def absorbed(self) -> bool:
        """Whether the product of an asked query and an entry is their logit."""
        return True

    @property
    def turned(self) -> bool:
        """Whether RoPE has turned a cached key's last numbers, pair by pair."""
        return True

    @property
    @abstractmethod
    def rows(self) -> int:
        """K, the rows of a layer's cache."""

    @property
    @abstractmethod
    def entry(self) -> int:
        """H, numbers of a cached key."""

    @property
    def trail(self) -> tuple[int, ...]:
        """The shape of what a kv head's next tokens need of the last; () = none."""
        return ()

    @abstractmethod
    def products(self, query_heads: int, head_dim: int) -> int:
        """Of a prompt's token with one before it: numbers multiplied, by all heads.

        Both are those of the decoder's grouped queries.
        """

    def check(self, kv_heads: int, head_dim: int) -> None:
        """Raises ValueError where a model of such heads cannot have these sizes."""
        return  # where any can


@dataclass(frozen=True)
class LatentSizes(Sizes):
    """The sizes of one layer's latent attention (jaxkv/attention/latent.py)."""

    kind = "latent"
    values_apart = False
    by_head = False

    rank: int = 512  # R, numbers of a token's latent
    rope_dim: int = 64  # of its key that all heads share, rotated
    nope_dim: int = 128  # of a head's own key, not rotated
    value_dim: int = 128  # of a head's value
    query_rank: int | None = None  # numbers of a query's latent; None = it has none
    norm: bool = True  # RMS norm of latents

    def __post_init__(self) -> None:
        for name in ("rank", "rope_dim", "nope_dim", "value_dim", "query_rank"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}; latent attention needs 1 at least.")
        if self.rope_dim % 2:
            raise ValueError(f"rope_dim={self.rope_dim} is odd; RoPE rotates pairs.")

    @property
    def rows(self) -> int:
        return 1

    @property
    def entry(self) -> int:
        """The latent, and the rotated key."""
        return self.rank + self.rope_dim

    def products(self, query_heads: int, head_dim: int) -> int:
        return query_heads * (self.nope_dim + self.rope_dim + self.value_dim)


@dataclass(frozen=True)
class LowRankSizes(Sizes):
    """The ranks of one layer's low-rank attention (jaxkv/attention/low_rank.py).

    A kv head's entry has its value's and its key's numbers; heads may share them out
    otherwise, but all of a layer have as many.
    """

    kind = "low_rank"
    values_apart = False
    by_head = True

    key_ranks: tuple[int, ...]  # of each kv head
    value_ranks: tuple[int, ...]
    after_rope: bool = True  # keys are cut to their rank once rotated; else before

    def __post_init__(self) -> None:
        if len(self.key_ranks) != len(self.value_ranks) or not self.key_ranks:
            raise ValueError(
                f"There are key ranks of {len(self.key_ranks)} kv heads and value "
                f"ranks of {len(self.value_ranks)}; give both of each head."
            )
        if min(self.key_ranks + self.value_ranks) < 1:
            raise ValueError(f"{self} has a rank below 1; give each head 1 at least.")
        if len({k + v for k, v in self.by_row}) > 1:
            raise ValueError(
                f"{self} has heads whose key and value together have different ranks; "
                "the heads of one layer must store equally many numbers."
            )

        if not self.after_rope and len(set(self.by_row)) > 1:
            raise ValueError(
                f"{self}: keys that are cut before RoPE share a basis; give all heads "
                "of the layer the same ranks."
            )

    @property
    def key_bases(self) -> int:
        """One for each kv head, or one that all share, as keys before RoPE do."""
        return self.rows if self.after_rope else 1

    @property
    def by_row(self) -> tuple[tuple[int, int], ...]:
        """Each kv head's key rank and value rank."""
        return tuple(zip(self.key_ranks, self.value_ranks, strict=True))

    @property
    def absorbed(self) -> bool:
        return self.after_rope

    @property
    def turned(self) -> bool:
        return False

    @property
    def rows(self) -> int:
        return len(self.key_ranks)

    @property
    def entry(self) -> int:
        """W, a head's value and key."""
        return self.key_ranks[0] + self.value_ranks[0]

    def products(self, query_heads: int, head_dim: int) -> int:
        return query_heads * 2 * head_dim

    def check(self, kv_heads: int, head_dim: int) -> None:
        if self.rows != kv_heads:
            raise ValueError(
                f"There are ranks of {self.rows} heads and the model has {kv_heads} kv "
                "heads; give a key rank and a value rank of each."
            )
        highest = max(self.key_ranks + self.value_ranks)
        if highest > head_dim:
            raise ValueError(
                f"A rank is to be {highest}, and a head of the model has {head_dim} "
                f"numbers; give 1 to {head_dim}."
            )


@dataclass(frozen=True)
class ConvolutionalSizes(Sizes):
    """The sizes of one layer's convolutional attention, whose heads are its own.

    (jaxkv/attention/convolutional.py)
    """

    kind = "convolutional"
    values_apart = True
    by_head = True
    equal_keys = True

    query_heads: int = 8  # N
    kv_heads: int = 2  # K, divides N
    head_dim: int = 128  # H
    rope_dim: int = 64  # of a head's numbers, rotated
    channel_kernel: int = 2  # tokens that each number is convolved over, and
    head_kernel: int = 2  # that each head's numbers are then

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if size < 1:
                raise ValueError(f"{name}={size}; such attention needs 1 at least.")
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"query_heads={self.query_heads} is not a multiple of "
                f"kv_heads={self.kv_heads}; grouped queries need whole groups."
            )
        for name in ("head_dim", "rope_dim"):
            if getattr(self, name) % 2:
                raise ValueError(f"{name}={getattr(self, name)} is odd; give pairs.")
        if self.rope_dim > self.head_dim:
            raise ValueError(
                f"rope_dim={self.rope_dim} is more than the {self.head_dim} numbers "
                "of a head."
            )

    @property
    def rows(self) -> int:
        return self.kv_heads

    @property
    def entry(self) -> int:
        return self.head_dim

    @property
    def lookback(self) -> int:
        """Tokens before it that an entry is made of; of a value always one."""
        return max(self.channel_kernel + self.head_kernel - 2, 1)

    @property
    def trail(self) -> tuple[int, ...]:
        """What was projected of them: a kv head's queries, its key and its value."""
        return self.lookback, self.query_heads // self.kv_heads + 2, self.head_dim

    def products(self, query_heads: int, head_dim: int) -> int:
        return self.query_heads * 2 * self.head_dim


KINDS: Mapping[str, type[Sizes]] = {
    kind.kind: kind for kind in (LatentSizes, LowRankSizes, ConvolutionalSizes)
}


def read_sizes(data: object) -> Sizes | None:
    """Sizes as `write_sizes` gives them; None is grouped queries.

    Raises ValueError, one sentence, for anything else.
    """
    if data is None:
        return None
    try:
        if not isinstance(data, Mapping):
            raise TypeError
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data.items()
        }
        return KINDS[given.pop("kind")](**given)
    except (TypeError, KeyError):
        raise ValueError(
            f'config.json: "attention" has {data!r}, which is neither null nor the '
            f"sizes of one of {', '.join(KINDS)}; convert the model again."
        ) from None


def write_sizes(sizes: Sizes | None) -> dict[str, Any] | None:
    return None if sizes is None else {"kind": sizes.kind} | asdict(sizes)
