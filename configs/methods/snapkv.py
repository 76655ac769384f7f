"""snapkv: what the last 32 queries look at, max-pooled over 7 neighbours.

SnapKV (arXiv 2404.14469) with the settings of its LongBench runs; scores are the mean
over a kv head's query heads, so the cache stays grouped. keep counts the window too.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=32, pool=7), budget=Uniform(), select=TopK()
)
