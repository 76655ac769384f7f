"""chunkkv: whole chunks of 10 tokens, by snapkv's scores summed over the heads.

ChunkKV (arXiv 2502.00299), with the paper's chunk of 10 tokens (kvpress 0.5.5: 20) and
snapkv's scores. All heads of a layer keep the same tokens; every layer chooses anew
(the paper may reuse a layer's choice in the next). keep counts the window too.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.chunks import Chunks

METHOD = Method(
    score=WindowAttention(window=32, pool=7), budget=Uniform(), select=Chunks(size=10)
)
