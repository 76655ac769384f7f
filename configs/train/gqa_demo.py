"""The demo with two kv heads where it has four, trained on (GQA, arXiv 2305.13245).

Command   jaxkv convert --to gqa --kv-heads 2 --out as-gqa
          jaxkv train gqa_demo --out runs/gqa_demo
Device    one H200
Expected  0.990 on all tasks at 2048 tokens (the demo: 0.997) from half of its cache

As the paper has it: heads are pooled by their mean, and the pooled model goes on with
the recipe that the first one was trained by, for a twentieth of its 17,000 steps.
"""

from dataclasses import replace

from jaxkv.configs.train.demo import TRAIN as DEMO

from jaxkv.train.config import Stage

TRAIN = replace(
    DEMO,
    model="as-gqa",
    stages=(Stage(850, DEMO.stages[1].feed),),
    save_every=425,
)
