"""tova_kvpress: tova as kvpress 0.5.5 has it, once at the end of prefill.

The prompt's last token stays whatever its score.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.last_query import LastQuery
from jaxkv.select.top_k import TopK

METHOD = Method(score=LastQuery(protect_newest=True), budget=Uniform(), select=TopK())
