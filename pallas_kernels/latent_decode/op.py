"""latent_decode on every platform: the implementation chosen."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform, fits
from pallas_kernels.gradient import with_gradient_of
from pallas_kernels.latent_decode import xla
from pallas_kernels.layout import Latent
from pallas_kernels.ragged_decode import op
from pallas_kernels.sharded import over_mesh

STATIC = (*op.STATIC, "value_dim")
BY_HEAD = "BJ--N"  # a row is read by all devices of the tensor axis, each for its heads
KINDS = op.KINDS | {"q": BY_HEAD}


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
    in fp32. On Hopper, 16-bit latents of sizes that the kernel is made for go through
    Mosaic GPU (`mosaic_gpu.check` says which), on a TPU up to 128 queries a row of
    bfloat16 or float32 through Mosaic TPU (`mosaic_tpu.check`), and all else through
    XLA, which also gives every gradient. Whose pages are read, meshes, what is returned
    as logits and `chunk` are as in `ragged_decode`.

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

    def through(kernel):
        """A loop over chunks has no gradient, and all at once the same values."""
        run = partial(
            over_mesh,
            lambda arrays: kernel(**arrays, **how),
            kinds=KINDS,
            results=BY_HEAD,
        )
        return with_gradient_of(partial(through_xla, chunk=None), run)

    module = "pallas_kernels.latent_decode.mosaic_gpu"
    hopper = fits("sm90", module, q, entry, value_dim)
    sm90 = through(_mosaic_gpu) if hopper else None
    fits_tpu = fits("tpu", "pallas_kernels.latent_decode.mosaic_tpu", q, entry)
    tpu = through(_mosaic_tpu) if fits_tpu else None
    return by_platform(through_xla, sm90=sm90, tpu=tpu)(arrays)


@partial(jax.jit, static_argnames=STATIC)
def _mosaic_gpu(*, owner, window, return_logits, **rest):
    """Traced once for all layers of a model."""
    from pallas_kernels.latent_decode import mosaic_gpu

    options = dict(window=window, return_logits=return_logits)
    out, lse, logits = mosaic_gpu.latent_decode(**rest, **options)
    return out, lse, op.of_live(logits, owner, window, rest)


@partial(jax.jit, static_argnames=STATIC)
def _mosaic_tpu(*, owner, window, return_logits, **rest):
    """Traced once for all layers of a model."""
    from pallas_kernels.latent_decode import mosaic_tpu

    options = dict(window=window, return_logits=return_logits)
    out, lse, logits = mosaic_tpu.latent_decode(owner=owner, **rest, **options)
    return out, lse, op.of_live(logits, owner, window, rest)


def check_value_dim(value_dim: int, head_dim: int) -> None:
    """Raises ValueError where a latent of so many numbers holds no such value."""
    if not 0 < value_dim <= head_dim:
        raise ValueError(
            f"value_dim {value_dim} is not from 1 to {head_dim}, the numbers of a "
            "latent."
        )
