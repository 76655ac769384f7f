"""core: what `jaxkv compare` runs when nothing is named; minutes on two CPU cores.

The yardstick and the ceiling, the floor, and rows that stand for their kinds.
"""

from jaxkv.evaluate.suite import Suite

SUITE = Suite(
    methods=(
        "full",
        "oracle",
        "kvzip",
        "adakv",
        "snapkv",
        "h2o",
        "streaming_llm",
        "random",
    ),
    tasks=("single_needle", "two_hop", "single_needle_dense", "two_hop_dense"),
)
