"""latent_decode on TPUs: ragged_decode's loop, on rows that are keys and values.

A page is copied once; its rows meet the queries, and their first lanes the weights.
"""

from pallas_kernels.ragged_decode.mosaic_tpu import check, ragged_decode

__all__ = ["check", "latent_decode"]


def latent_decode(*arrays, value_dim: int, **options):
    """As `op.latent_decode`, with the arguments of ragged_decode's kernel.

    At most 128 queries a row, of bfloat16 or float32. Raises ValueError as `check`
    does.
    """
    return ragged_decode(*arrays, value_dim=value_dim, **options)
