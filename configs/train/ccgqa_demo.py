"""The demo decoder with CCGQA (arXiv 2510.04476), from scratch, at 1/4 of its cache.

Command   jaxkv train ccgqa_demo --out runs/ccgqa_demo
Device    one H200; 5.5 minutes (331 s; 65,536 tokens in 20 ms at 128 tokens, in 30 ms
          at up to 2048)
Expected  0.999 on all tasks at 2048 tokens (the demo: 0.997); 0.996 of answers exactly
          right in training at 2048

The demo's run but for attention, and half as long: as many query heads of 64, and
one kv head where it has four, so that a token takes 128 numbers a layer and not 512.
Attention has 370,000 parameters a layer, the demo's 393,000. A convolution looks at the
words before, which the demo's first layer learns to do: copying comes sooner.
"""

from dataclasses import replace

from jaxkv.configs.train.demo import TRAIN as DEMO

from jaxkv.models.sizes import ConvolutionalSizes
from jaxkv.train.config import Stage

ATTENTION = ConvolutionalSizes(query_heads=8, kv_heads=1, head_dim=64, rope_dim=32)
TRAIN = replace(
    DEMO,
    model=replace(DEMO.model, attention=(ATTENTION,) * 6),
    stages=(Stage(2500, DEMO.stages[0].feed), Stage(7000, DEMO.stages[1].feed)),
)
