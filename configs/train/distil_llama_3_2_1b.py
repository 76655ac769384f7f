"""Distillation at Llama-3.2-1B's shape on one GPU: teacher and student, rows of 8192.

Command   jaxkv train distil_llama_3_2_1b
Device    one H200
Expected  the divergence falls

`llama-3.2-1b` is the shape alone, with random weights, for planning and measuring; give
--model and --teacher a folder or org/name to train. Token files are of that tokenizer.
A step is 65,536 tokens, four rows at a time; layers keep their products and what
attention gave (`python benchmarks/train_step.py`).
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.2-1b",
    teacher="llama-3.2-1b",
    stages=(
        Stage(
            5000,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=8,
                length=8192,
                apart=False,
            ),
        ),
    ),
    objectives=(Divergence(logits_bytes=2**31),),
    optimizer=AdamW(WarmupCosine(2e-5, warmup=200, final=0.1), b2=0.95),
    micro=2,
    remat="dots",
    save_every=500,
    log_every=10,
)
