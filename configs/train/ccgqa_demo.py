"""The demo decoder with CCGQA (arXiv 2510.04476), from scratch, at 1/4 of its cache.

Command   jaxkv train ccgqa_demo --out runs/ccgqa_demo
Device    one H200 is meant; tried for 60 steps of 16 rows on two CPU cores
Expected  not run to its end: the loss fell from 6.34 to 4.46 there; as many answers
          right as the demo has, within 0.02, is the aim

The demo's run but for attention: as many query heads of 64, and one kv head where it
has four, so that a token takes 128 numbers a layer and not 512. Attention has 370,000
parameters a layer, the demo's 393,000.
"""

from dataclasses import replace

from jaxkv.configs.train.demo import TRAIN as DEMO

from jaxkv.models.sizes import ConvolutionalSizes

ATTENTION = ConvolutionalSizes(query_heads=8, kv_heads=1, head_dim=64, rope_dim=32)
TRAIN = replace(DEMO, model=replace(DEMO.model, attention=(ATTENTION,) * 6))
