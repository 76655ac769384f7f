"""ragged_decode: a few queries a row against the pages that the row owns."""

from pallas_kernels.ragged_decode.op import ragged_decode

__all__ = ["ragged_decode"]
