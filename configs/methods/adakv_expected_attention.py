"""adakv_expected_attention: Ada-KV over expected_attention, as kvpress evaluates it.

kvpress 0.5.5: epsilon 1e-2, a safeguard of 0.2 for each head, then the lowest scores
over all heads go. keep is the mean over the heads of a layer, sinks counted.
"""

from jaxkv.budget.head_adaptive import SafeguardedHeads
from jaxkv.method import Method
from jaxkv.score.expected_attention import ExpectedAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=ExpectedAttention(sinks=4, future=512, epsilon=1e-2),
    budget=SafeguardedHeads(floor=0.2),
    select=TopK(),
)
