"""streaming_llm_rebased: 4 sinks and the newest tokens, at positions inside the cache.

StreamingLLM (arXiv 2309.17453) as published: what is held stands next to each other, so
that no distance exceeds the cache; on overflow the oldest token after the sinks goes.
keep is what every head holds, for good: the cache does not grow.
"""

from jaxkv.budget.uniform import Uniform
from jaxkv.cache.rerotated import SinksFollow
from jaxkv.method import Method
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=Recency(sinks=4),
    budget=Uniform(),
    select=TopK(),
    cache=SinksFollow(sinks=4),
    when="step",
)
