"""X-EcoMLA's distillation at Llama-3.1-8B's shape: latents learn what they replace.

Command   jaxkv convert --model FOLDER --to mla --rank 160 --rope-dim 64 \\
              --query-rank 2048 --no-norm --out as-mla
          jaxkv train mla_llama_3_1_8b --model as-mla --teacher FOLDER
Device    a pod of 256 chips, TPU v5e 16x16
Expected  the paper's 3.2B model at 43 % of its cache: 60.5 on average of nine tasks,
          where the model that it was made from has 59.3 (arXiv 2503.11132)

As the paper has it: every parameter is trained, towards the teacher's next words and
nothing else, on rows of 2048 tokens at a rate of 4e-5 that falls along a cosine after
a hundredth of the steps; 7.3e9 tokens, its longest run. Its mean of the divergence is
over rows alone; ours is over tokens, which Adam's step does not see. The paper then
tunes for preferences (DPO), and this does not. Without --model and --teacher weights
are random, for planning and measuring.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.1-8b-mla",
    teacher="llama-3.1-8b",
    stages=(
        Stage(
            3500,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=1024,
                length=2048,
                apart=False,
            ),
        ),
    ),
    objectives=(Divergence(logits_bytes=2**27),),
    optimizer=AdamW(WarmupCosine(4e-5, warmup=35, final=0.0), b2=0.999),
    micro=4,
    remat="full",
    mesh="fsdp=64,tensor=4",
    save_every=500,
    log_every=10,
)
