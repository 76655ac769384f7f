"""qfilters: keys along the direction that queries usually have stay.

Q-Filters (arXiv 2503.02812): one direction a kv head, from `jaxkv calibrate`; the
newest 64 tokens stay. keep is every head's share of the prompt and counts them.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.query_filter import QueryFilter
from jaxkv.select.top_k import TopK

METHOD = Method(score=QueryFilter(window=64), budget=Uniform(), select=TopK())
