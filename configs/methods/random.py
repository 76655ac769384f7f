"""random: slots drawn at random for each layer and head, keyed by the sequence itself.

The floor of every comparison: a method that is not above it says nothing.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.noise import Noise
from jaxkv.select.top_k import TopK

METHOD = Method(score=Noise(), budget=Uniform(), select=TopK())
