"""full: no compression, the yardstick. Every token keeps its slot; keep is not used."""

from jaxkv.budget.everything import Everything
from jaxkv.method import Method
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import InOrder

METHOD = Method(score=Recency(sinks=0), budget=Everything(), select=InOrder())
