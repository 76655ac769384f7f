"""The sizes of what a layer attends with, where that is not grouped queries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Sizes:
    """What the cache and the trainer need to know of a way to attend."""

    kind: ClassVar[str]  # its name in config.json
    values_apart: ClassVar[bool]  # a slot holds a key and a value; else both in one

    @property
    def rows(self) -> int:
        """K, the rows of a layer's cache."""
        raise NotImplementedError

    @property
    def entry(self) -> int:
        """H, numbers of a cached key."""
        raise NotImplementedError

    def products(self, query_heads: int) -> int:
        """Of a prompt's token with one before it: numbers multiplied, by all heads."""
        raise NotImplementedError


@dataclass(frozen=True)
class LatentSizes(Sizes):
    """The sizes of one layer's latent attention (jaxkv/attention/latent.py)."""

    kind = "latent"
    values_apart = False

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

    def products(self, query_heads: int) -> int:
        return query_heads * (self.nope_dim + self.rope_dim + self.value_dim)


KINDS: Mapping[str, type[Sizes]] = {kind.kind: kind for kind in (LatentSizes,)}


def read_sizes(data: object) -> Sizes | None:
    """Sizes as `write_sizes` gives them; None is grouped queries.

    Raises ValueError, one sentence, for anything else.
    """
    if data is None:
        return None
    try:
        if not isinstance(data, Mapping):
            raise TypeError
        given: dict[str, Any] = dict(data)
        return KINDS[given.pop("kind")](**given)
    except (TypeError, KeyError):
        raise ValueError(
            f'config.json: "attention" has {data!r}, which is neither null nor the '
            f"sizes of one of {', '.join(KINDS)}; convert the model again."
        ) from None


def write_sizes(sizes: Sizes | None) -> dict[str, Any] | None:
    return None if sizes is None else {"kind": sizes.kind} | asdict(sizes)
