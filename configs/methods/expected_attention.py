"""expected_attention: what the next 512 queries will look at, if like the prompt's.

Expected Attention (arXiv 2510.00636) with the defaults of kvpress 0.5.5: 4 sinks that
stay, covariance, values' norms. keep is every head's share of the prompt and counts the
sinks.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.expected_attention import ExpectedAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=ExpectedAttention(sinks=4, future=512), budget=Uniform(), select=TopK()
)
