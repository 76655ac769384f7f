"""kvzip_layerwise: kvzip with the same number of slots for every layer.

One threshold over the heads of a layer. keep is the mean over them.
"""

from jaxkv.budget.head_adaptive import HeadAdaptive
from jaxkv.method import Method
from jaxkv.score.fed_attention import RepeatedAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=RepeatedAttention(chunk=2048, overlap=8, sinks=4),
    budget=HeadAdaptive(floor=0.0),
    select=TopK(),
)
