"""streaming_llm: 4 sinks and the newest tokens, at their original positions.

StreamingLLM (arXiv 2309.17453), cut once at the end of prefill. keep counts sinks and
recent tokens alike.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.method import Method
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import TopK

METHOD = Method(score=Recency(sinks=4), budget=Uniform(), select=TopK())
