"""razorattention: heads that look far back keep all, the others ends and one mean.

RazorAttention (arXiv 2407.15891): heads by our own echo and induction probe; the
others keep 4 sinks, the newest max(64, 5 %) tokens, and a compensation slot. keep sets
how many heads are full after that, rounded down; the row is n/a below what the others
hold. The paper's max(4000, 20 %) is razorattention(recent=4000, share=0.2): it saves
nothing of prompts below 4000 tokens.
"""

from jaxkv.budget.head_classes import HeadClasses
from jaxkv.merge.mean_slot import MeanSlot
from jaxkv.method import Method
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import TopK

METHOD = Method(
    score=Recency(sinks=4),
    budget=HeadClasses(
        by="induction", sinks=4, recent=64, share=0.05, compensation=True
    ),
    select=TopK(),
    merge=MeanSlot(),
)
