"""snapkv_kvpress: snapkv with the defaults of kvpress 0.5.5.

A window of 64, an average pool of 5, the mean over a kv head's query heads.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=64, pool=5, pooling="average"),
    budget=Uniform(),
    select=TopK(),
)
