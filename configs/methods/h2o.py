"""h2o: half of the slots for the newest tokens, half for the heavy hitters.

H2O (arXiv 2306.14048): each slot carries the attention that it has received, from all
queries of the prompt and every later one; at every step the worst of the older half
goes. keep is what every head holds, for good: the cache does not grow.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.accumulated_attention import AccumulatedAttention
from jaxkv.select.heavy_and_recent import HeavyAndRecent

METHOD = Method(
    score=AccumulatedAttention(),
    budget=Uniform(),
    select=HeavyAndRecent(recent=0.5),
    when="step",
)
