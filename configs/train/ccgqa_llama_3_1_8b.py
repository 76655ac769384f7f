"""CCGQA from scratch at Llama-3.1-8B's shape (arXiv 2510.04476).

Command   jaxkv train ccgqa_llama_3_1_8b
Device    a pod of 256 chips, TPU v5e 16x16
Expected  no drop against attention whose kv heads are as many as its queries, at an
          eighth of its cache, as the paper finds for a mixture of experts

A reconstruction: the paper's schedule is not known, and a conversion of a trained model
is not described there. The rate and the rows are Llama 3.1's; 2e11 tokens are about 25
for each parameter.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import CrossEntropy
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.1-8b-ccgqa",
    stages=(
        Stage(
            47_684,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=512,
                length=8192,
                apart=False,
            ),
        ),
    ),
    objectives=(CrossEntropy(logits_bytes=2**27),),
    optimizer=AdamW(
        WarmupCosine(3e-4, warmup=2000, final=0.01), b2=0.95, weight_decay=0.1
    ),
    micro=4,
    remat="full",
    mesh="fsdp=64,tensor=4",
    save_every=500,
    log_every=10,
)
