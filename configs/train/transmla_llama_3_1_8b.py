"""TransMLA's training at Llama-3.1-8B's shape: latents recover by language modelling.

Command   jaxkv convert --model FOLDER --to transmla --rank 512 --rope-dim 64 \\
              --out as-transmla
          jaxkv train transmla_llama_3_1_8b --model as-transmla
Device    a pod of 256 chips, TPU v5e 16x16
Expected  the paper's Llama-2-7B, with 93 % of its cache gone, is back at the original's
          scores after 6e9 tokens (arXiv 2502.07864); Llama-3-8B at 512 + 64 begins at a
          WikiText-2 perplexity of 25.8 where the model has 6.1

As the paper has it: every parameter, the next word's loss, 128 rows of 4096 tokens, a
rate of 2e-5 that falls along a cosine after 3 % of the steps, a decay of 0.01. Without
--model weights are random, for planning and measuring.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import CrossEntropy
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

STEPS = 11_444  # 6e9 tokens
TRAIN = Train(
    model="llama-3.1-8b-transmla",
    stages=(
        Stage(
            STEPS,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=128,
                length=4096,
                apart=False,
            ),
        ),
    ),
    objectives=(CrossEntropy(logits_bytes=2**27),),
    optimizer=AdamW(
        WarmupCosine(2e-5, warmup=343, final=0.0), b2=0.999, weight_decay=0.01
    ),
    remat="full",
    mesh="fsdp=64,tensor=4",
    save_every=500,
    log_every=10,
)
