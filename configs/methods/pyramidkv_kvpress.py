"""pyramidkv_kvpress: pyramidkv with the defaults of kvpress 0.5.5.

A window of 64 that counts in the line, an average pool of 5.
"""

from jaxkv.budget.pyramid import Pyramid
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=64, pool=5, pooling="average"),
    budget=Pyramid(window=64, beta=20.0, count_window=True),
    select=TopK(),
)
