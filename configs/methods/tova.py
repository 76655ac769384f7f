"""tova: at every step the token that the newest query looks at least goes.

TOVA (arXiv 2401.06104): attention of the last query, averaged over all heads of the
layer, which hold the same tokens. Nothing is protected. keep is what every head holds,
for good: the cache does not grow.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.last_query import LastQuery
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=LastQuery(),
    budget=Uniform(),
    select=TopK(),
    when="step",
)
