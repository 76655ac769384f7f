"""Distillation at Llama-3.1-8B's shape: teacher and student, rows of 8192 tokens.

Command   jaxkv train distil_llama_3_1_8b
Device    a pod of 256 chips, TPU v5e 16x16
Expected  the divergence and the squared errors of the layers fall

`llama-3.1-8b` is the shape alone, with random weights, for planning and measuring; give
--model and --teacher a folder or org/name to train. Token files are of that tokenizer.
A step is 2.1M tokens, a row a chip; of a layer the backward pass has its input alone.
Four chips share a row and the vocabulary: the layers' hidden states, the teacher's and
their gradients take most of a chip (`jaxkv plan --train distil_llama_3_1_8b`).
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import Divergence, HiddenStates
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.1-8b",
    teacher="llama-3.1-8b",
    stages=(
        Stage(
            5000,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=256,
                length=8192,
                apart=False,
            ),
        ),
    ),
    objectives=(Divergence(logits_bytes=2**27), HiddenStates(weight=0.1)),
    optimizer=AdamW(WarmupCosine(2e-5, warmup=200, final=0.1), b2=0.95),
    micro=4,
    remat="full",
    mesh="fsdp=64,tensor=4",
    save_every=500,
    log_every=10,
)
