"""duoattention: heads with an open gate keep all, the others sinks and newest tokens.

DuoAttention (arXiv 2410.10819): gates trained with `jaxkv train`; the others keep 16
sinks and the newest 64 tokens, and at every step the oldest of them goes. keep sets how
many heads are full after that, rounded down; the row is n/a below what the others hold.
The paper deploys duoattention(sinks=64, recent=256).
"""

from jaxkv.budget.head_classes import HeadClasses
from jaxkv.method import Method
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=Recency(sinks=16),
    budget=HeadClasses(by="gate", sinks=16, recent=64),
    select=TopK(),
    when="step",
)
