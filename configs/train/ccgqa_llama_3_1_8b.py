"""CCGQA from scratch at Llama-3.1-8B's shape (arXiv 2510.04476).

Command   jaxkv train ccgqa_llama_3_1_8b
Device    a pod of 256 chips, TPU v5e 16x16
Expected  no drop against attention whose kv heads are as many as its queries, at an
          eighth of its cache, as the paper finds for a mixture of experts

A reconstruction: the paper's schedule is not known, and a conversion of a trained model
is not described there. The rate and the rows are Llama 3.1's; 2e11 tokens are about 25
for each parameter.
"""

from dataclasses import replace

from jaxkv.configs.train.gqa_llama_3_1_8b import TRAIN as GQA

from jaxkv.train.config import Stage

TRAIN = replace(
    GQA,
    model="llama-3.1-8b-ccgqa",
    stages=(Stage(47_684, GQA.stages[0].feed),),
    mesh="fsdp=64,tensor=4",
)
