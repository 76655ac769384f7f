"""knorm: keys of small norm stay (arXiv 2406.11430), as in kvpress 0.5.5."""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.key_norm import KeyNorm
from jaxkv.select.top_k import TopK

METHOD = Method(score=KeyNorm(), budget=Uniform(), select=TopK())
