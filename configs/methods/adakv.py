"""adakv: snapkv's scores, and slots dealt to the heads that need them.

Ada-KV (arXiv 2407.11550), the official rule with a floor of 0.2. keep is the mean over
the heads of a layer (of a head group, where heads are sharded); the window counts.
"""

from jaxkv.budget.head_adaptive import HeadAdaptive
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=32, pool=7),
    budget=HeadAdaptive(floor=0.2),
    select=TopK(),
)
