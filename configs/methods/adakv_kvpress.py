"""adakv_kvpress: Ada-KV over snapkv as kvpress 0.5.5 defines it.

A safeguard of 0.2 for each head, then the lowest scores over all heads go.
"""

from jaxkv.budget.head_adaptive import SafeguardedHeads
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=64, pool=5, pooling="average"),
    budget=SafeguardedHeads(floor=0.2),
    select=TopK(),
)
