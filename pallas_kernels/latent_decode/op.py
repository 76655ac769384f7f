"""latent_decode on every platform: the implementation chosen."""

from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform
from pallas_kernels.latent_decode import xla
from pallas_kernels.layout import Latent


def latent_decode(
    q: Float[Array, "B J R T G H"],
    entry: Latent,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    value_dim: int,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    chunk: int | None = None,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the latents of its pages.

    As `reference.latent_decode`: out, of `value_dim` numbers a query, in q's dtype, lse
    in fp32. Whose pages are read, what is returned as logits and `chunk` are as in
    `ragged_decode`.

    Raises:
      ValueError: a value is to be more than a latent holds, or nothing.
    """
    check_value_dim(value_dim, q.shape[-1])
    arrays = dict(
        q=q,
        entry=entry,
        owner=owner,
        position=position,
        q_position=q_position,
        table=table,
        length=length,
        bias=bias,
    )
    how = dict(
        value_dim=value_dim,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        return_logits=return_logits,
    )

    def through_xla(arrays, chunk=chunk):
        of_pages = {n: x for n, x in arrays.items() if n not in ("table", "length")}
        return xla.latent_decode(**of_pages, **how, chunk=chunk)

    return by_platform(through_xla)(arrays)


def check_value_dim(value_dim: int, head_dim: int) -> None:
    """Raises ValueError where a latent of so many numbers holds no such value."""
    if not 0 < value_dim <= head_dim:
        raise ValueError(
            f"value_dim {value_dim} is not from 1 to {head_dim}, the numbers of a "
            "latent."
        )
