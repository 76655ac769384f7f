"""kvzip: what the model looks at while it repeats the context stays.

KVzip (arXiv 2505.23416): the context is fed to its own full cache, in chunks of 2048;
one threshold over all layers and heads. keep is the mean over all heads of the model,
which share one pool; 4 sinks count in it.
"""

from jaxkv.budget.head_adaptive import HeadAdaptive
from jaxkv.method import Method
from jaxkv.score.fed_attention import RepeatedAttention
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=RepeatedAttention(chunk=2048, overlap=8, sinks=4),
    budget=HeadAdaptive(floor=0.0, over="model"),
    select=TopK(),
)
