"""pyramidkv: snapkv's scores, and more slots in lower layers than in higher ones.

PyramidKV (arXiv 2406.02069) with its window of 8 and beta of 20; the layers' total is
exact. keep is the mean over the layers and counts the window.
"""

from jaxkv.budget.pyramid import Pyramid
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=WindowAttention(window=8, pool=7),
    budget=Pyramid(window=8, beta=20.0),
    select=TopK(),
)
