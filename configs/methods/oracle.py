"""oracle: what the question and the answer will really look at stays; a ceiling.

Only compare can run it, since it knows what will be asked. keep is every head's.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.fed_attention import FutureAttention
from jaxkv.select.top_k import TopK

METHOD = Method(score=FutureAttention(), budget=Uniform(), select=TopK())
