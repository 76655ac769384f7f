"""critical_snapkv_kvpress: snapkv's best half, then what moves the layer's output.

CriticalKV (arXiv 2502.03805) over snapkv, with the defaults of kvpress 0.5.5. keep
counts the window too, and the window counts in the first half.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.window_attention import WindowAttention
from jaxkv.select.critical import Critical

METHOD = Method(
    score=WindowAttention(window=64, pool=5, pooling="average"),
    budget=Uniform(),
    select=Critical(first=0.5, epsilon=1e-4),
)
