"""ragged_decode on every platform: the implementation chosen, and learned sinks."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.dispatch import by_platform, fits
from pallas_kernels.gradient import with_gradient_of
from pallas_kernels.layout import AnyEntry, Latent
from pallas_kernels.ragged_decode import xla
from pallas_kernels.sharded import over_mesh

KINDS = dict.fromkeys(
    ("q", "entry", "owner", "position", "table", "length", "bias"), "BJ"
) | {"q_position": "B"}
STATIC = "scale", "soft_cap", "window", "return_logits"


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: AnyEntry,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    sinks: Float[Array, "J R G"] | None = None,
    return_logits: bool = False,
    chunk: int | None = None,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `reference.ragged_decode`: out in q's dtype, lse in fp32. On Hopper, 16-bit
    entries of a head_dim and page size that the kernel is made for go through Mosaic
    GPU (`mosaic_gpu.check` says which), on a TPU up to 64 queries a row of bfloat16 or
    float32 entries through Mosaic TPU (`mosaic_tpu.check`), and all else through XLA,
    which also gives every gradient. On a mesh (`jax.set_mesh`) each device
    runs the kernel on its own part, see `sharded.over_mesh`. Which pages a row
    reads is said twice: by `owner`, which the XLA path follows, and by `table` and
    `length`, which the kernels follow. A list of a part of the pages is a masked owner
    and a shorter table. The third result is each slot's logit under its owner's queries
    when `return_logits` (-inf where not live), else None.

    chunk: where most pages of the pool are other rows', XLA reads the rows' own pages,
    so many at a time; they must lie one after another, and logits are not returned.
    sinks: a learned logit of each query head that takes part in the softmax and has
    value 0; lse includes it.

    Raises:
      ValueError: the entries are latents.
    """
    if isinstance(entry, Latent):
        raise ValueError("ragged_decode reads no latents; latent_decode does.")
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
        scale=scale, soft_cap=soft_cap, window=window, return_logits=return_logits
    )

    def through_xla(arrays, chunk=chunk):
        of_pages = {n: x for n, x in arrays.items() if n not in ("table", "length")}
        return xla.ragged_decode(**of_pages, **how, chunk=chunk)

    def through(kernel):
        """A loop over chunks has no gradient, and all at once the same values."""
        run = partial(over_mesh, lambda arrays: kernel(**arrays, **how), kinds=KINDS)
        return with_gradient_of(partial(through_xla, chunk=None), run)

    hopper = fits("sm90", "pallas_kernels.ragged_decode.mosaic_gpu", q, entry)
    sm90 = through(_mosaic_gpu) if hopper else None
    fits_tpu = fits("tpu", "pallas_kernels.ragged_decode.mosaic_tpu", q, entry)
    tpu = through(_mosaic_tpu) if fits_tpu else None
    choose = by_platform(through_xla, sm90=sm90, tpu=tpu)
    out, lse, logits = choose(arrays)
    if sinks is not None:
        out, lse = with_sinks(out, lse, sinks)
    return out, lse, logits


@partial(jax.jit, static_argnames=STATIC)
def _mosaic_gpu(*, owner, window, return_logits, **rest):
    """Traced once for all layers of a model."""
    from pallas_kernels.ragged_decode import mosaic_gpu

    options = dict(window=window, return_logits=return_logits)
    out, lse, logits = mosaic_gpu.ragged_decode(**rest, **options)
    return out, lse, of_live(logits, owner, window, rest)


@partial(jax.jit, static_argnames=STATIC)
def _mosaic_tpu(*, owner, window, return_logits, **rest):
    """Traced once for all layers of a model."""
    from pallas_kernels.ragged_decode import mosaic_tpu

    options = dict(window=window, return_logits=return_logits)
    out, lse, logits = mosaic_tpu.ragged_decode(owner=owner, **rest, **options)
    return out, lse, of_live(logits, owner, window, rest)


def of_live(logits, owner, window: int | None, rest: dict):
    """A kernel's logits, and -inf where its owner's queries do not see the slot."""
    if logits is None:
        return None
    live = xla.live(owner, rest["position"], rest["q_position"], window)
    return jnp.where(live, logits, -jnp.inf)


def with_sinks(
    out: Float[Array, "B J R T G H"],
    lse: Float[Array, "B J R T G"],
    sinks: Float[Array, "J R G"],
) -> tuple[Float[Array, "B J R T G H"], Float[Array, "B J R T G"]]:
    """Attention with one more logit a query head, whose value is 0.

    lse' = log(exp(lse) + exp(sink)), out' = out exp(lse - lse').
    """
    total = jnp.logaddexp(lse, sinks.astype(jnp.float32)[None, :, :, None])
    shared = out.astype(jnp.float32) * jnp.exp(lse - total)[..., None]
    return shared.astype(out.dtype), total
