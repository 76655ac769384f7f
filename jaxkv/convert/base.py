"""What ways of converting a model have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxkv.attention.grouped_query import GroupedQuery
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder, Layer
from jaxkv.models.folder import assemble
from jaxkv.models.sizes import Sizes

Progress = Callable[[int, int, str], None]  # done, total, what
Rows = Sequence[Sequence[int]]  # of token ids
M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Way(ABC):
    """A frozen dataclass whose fields say how; what it makes of a model is a model.

    calibrates: whether it looks at what the model makes of rows of tokens.
    """

    calibrates: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, model: Decoder, rows: Rows = (), progress: Progress | None = None
    ) -> Decoder:
        """The converted model; nothing of the given one is changed.

        rows: token ids of any lengths, for ways that calibrate; others ignore them.
        """


def convertible(
    config: DecoderConfig, layers: Sequence[int] | None, *, head_norms: bool = False
) -> list[int]:
    """Those of the layers asked for, in order, None being all.

    head_norms: whether norms of heads stay. Raises ValueError where a layer is not
    there or has no grouped queries, and where heads have norms that cannot stay.
    """
    if config.qk_norm and not head_norms:
        raise ValueError(
            "The model norms every query and key head, which no latent attention "
            "does; convert a model without."
        )
    asked = sorted(set(range(config.layers) if layers is None else layers))
    for i in asked:
        if not 0 <= i < config.layers:
            raise ValueError(
                f"There is no layer {i} in a model of {config.layers}, counted from 0."
            )
        if config.sizes(i) is not None:
            raise ValueError(
                f"Layer {i} has no grouped queries any more; leave it out."
            )
    return asked


def in_fp32(module: M) -> M:
    """A layer, or a part of one, with parameters in fp32; for use within a program."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), module)


def weights(layer: Layer, index: int) -> Float[np.ndarray, "D K G H"]:
    """qkv of a layer of grouped queries, in fp64; ValueError if it is not finite."""
    assert isinstance(layer.attention, GroupedQuery)  # `convertible` has seen to it
    qkv_DKGH = np.asarray(layer.attention.qkv[...], np.float64)
    if not np.isfinite(qkv_DKGH).all():
        raise ValueError(
            f"Weights of layer {index} are not finite; use another checkpoint."
        )
    return qkv_DKGH


def check_rank(rank: int, most: int, what: str) -> int:
    """The rank; ValueError for one that a matrix of rank `most` does not have."""
    if not 0 < rank <= most:
        raise ValueError(
            f"The {what} is to be {rank}, and its matrix has {most} at most; "
            f"give 1 to {most}."
        )
    return rank


def with_attention(
    model: Decoder,
    made: Iterable[tuple[int, Sizes, Mapping[str, Any]]],
    dtype: DTypeLike | None = None,
) -> Decoder:
    """The model with other attention in some layers: (layer, its sizes, parameters).

    Each layer's are cast when they come, so that one's need exist in fp64 at a time: to
    the model's dtype when none is given.
    """
    config, own_dtype = model.config, model.table[...].dtype
    dtype = own_dtype if dtype is None else dtype
    arrays = parameters(model)
    sizes = [config.sizes(i) for i in range(config.layers)]
    for i, own, attention in made:
        sizes[i] = own
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), dict(attention))
        arrays["layers"][i] = {**arrays["layers"][i], "attention": cast}
    return assemble(replace(config, attention=tuple(sizes)), arrays, own_dtype)


def parameters(model: Decoder) -> dict[str, Any]:
    """All of a model's, nested by attribute, in dicts that may be changed."""
    arrays = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {**arrays, "layers": dict(arrays["layers"])}


def heads_out(layer: Layer) -> Float[np.ndarray, "N H D"]:
    """W_o of a layer of grouped queries, by query head."""
    assert isinstance(layer.attention, GroupedQuery)
    out_KGHD = np.asarray(layer.attention.out[...])
    return out_KGHD.reshape(-1, *out_KGHD.shape[2:])
