"""column_scores on every platform: the implementation chosen."""

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.column_scores import xla
from pallas_kernels.dispatch import by_platform, fits
from pallas_kernels.sharded import over_mesh

KINDS = {"q_position": "B", "k_position": "B"} | dict.fromkeys(("q", "k", "lse"), "B-J")


def column_scores(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    q_position: Int[Array, "B T"],
    k_position: Int[Array, "B S"],
    *,
    scale: float,
    reduce: str = "sum",
    group: str | None = None,
    lse: Float[Array, "B T N"] | None = None,
) -> tuple[Float[Array, "B K S"], Float[Array, "B T N"]]:
    """Attention to each key, reduced over the queries and then the group, and lse.

    As `reference.column_scores`. On Hopper, 16-bit queries and keys of a head_dim that
    the kernel is made for go through Mosaic GPU (`mosaic_gpu.check` says which), on a
    TPU bfloat16 or float32 ones through Mosaic TPU (`mosaic_tpu.check`), all else
    through XLA. Positions may come in any order; -1 is no query or no key, and
    what stands there may be anything finite. A given lse replaces the queries' own, so
    that the softmax may run over other keys than the ones scored. Gradients stop here:
    scores choose, and nothing is trained through them.

    Raises:
      ValueError: `reduce` is not sum or max, or `group` not mean or max.
    """
    how = dict(scale=scale, reduce=reduce, group=xla.group_of(reduce, group))
    arrays = jax.lax.stop_gradient(
        dict(q=q, k=k, q_position=q_position, k_position=k_position, lse=lse)
    )

    def through(kernel):
        """Each device its own rows and heads: XLA can split no loop over them."""

        def own(arrays):
            return kernel(**arrays, **how)

        return lambda arrays: over_mesh(own, arrays, KINDS, results=("BJ", "B-J"))

    hopper = fits("sm90", "pallas_kernels.column_scores.mosaic_gpu", q, k)
    fits_tpu = fits("tpu", "pallas_kernels.column_scores.mosaic_tpu", q, k)
    sm90 = through(_mosaic_gpu) if hopper else None
    tpu = through(_mosaic_tpu) if fits_tpu else None
    return by_platform(through(xla.column_scores), sm90=sm90, tpu=tpu)(arrays)


def _mosaic_gpu(**arguments):
    from pallas_kernels.column_scores import mosaic_gpu

    return mosaic_gpu.column_scores(**arguments)


@partial(jax.jit, static_argnames=("scale", "reduce", "group"))
def _mosaic_tpu(**arguments):
    """Traced once for all layers of a model."""
    from pallas_kernels.column_scores import mosaic_tpu

    return mosaic_tpu.column_scores(**arguments)
