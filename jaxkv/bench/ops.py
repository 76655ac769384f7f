"""Single ops at the sizes of real decoding: right first, then timed.

All at one layer of a model with 32 query and 8 kv heads of 128, or, of latents, at one
of DeepSeek-V3's. What an op reads lies in at least 1 GB of arrays in turn, so that no
cache holds it.
"""

from jaxkv.bench.column_scores import measure_column_scores
from jaxkv.bench.latent_decode import measure_latent_decode
from jaxkv.bench.pack_pages import measure_append_entries, measure_pack_pages
from jaxkv.bench.ragged_decode import measure_ragged_decode

MEASURE = {
    "ragged_decode": measure_ragged_decode,
    "latent_decode": measure_latent_decode,
    "pack_pages": measure_pack_pages,
    "append_entries": measure_append_entries,
    "column_scores": measure_column_scores,
}
"""By op: (speed, dtype, whether a peer is timed too) to rows."""
