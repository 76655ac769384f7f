"""The demo with latents of 80 numbers a token and layer, distilled on a CPU.

Command   jaxkv convert --to transmla --rank 48 --rope-dim 32 --out as-mla
          jaxkv train mla_demo_cpu --out runs/mla_demo_cpu
Device    two CPU cores, 25 minutes (1.2 s a step of 2816 words)
Expected  what ships as `demo-mla`: 0.88 on all tasks at 2048 tokens (needles 0.93,
          lists 0.71; the demo: 0.997), with a cache 6.4 times smaller

TransMLA's start is nearer to the demo than X-EcoMLA's, so that few words do: mostly
short rows, because how to copy by a key of several words is learned there first. What
ships came of two runs of these rows: 322 steps of a schedule of 1800, and from there
850 with one of their own; calibrated on contexts of 512 tokens.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="as-mla",
    teacher="demo",
    stages=(Stage(1200, Documents(((5, 256), (1, 512), (1, 1024)), Recipe(gaps=0.1))),),
    objectives=(Divergence(),),
    optimizer=AdamW(WarmupCosine(1e-3, warmup=50)),
    dtype="float32",
    unrolled=True,
    save_every=300,
    log_every=25,
)
