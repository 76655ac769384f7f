"""keydiff: keys unlike the mean key stay (arXiv 2504.15364), as in kvpress 0.5.5.

Cut once at the end of prefill; the paper cuts every 128 tokens. Nothing is protected;
keep is every head's share of the prompt.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.key_difference import KeyDifference
from jaxkv.select.top_k import TopK

METHOD = Method(score=KeyDifference(), budget=Uniform(), select=TopK())
