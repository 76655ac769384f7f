"""The demo model with latents for a cache, distilled from itself (X-EcoMLA).

Command   jaxkv convert --model demo --to mla --rank 48 --rope-dim 32 --out as-mla
          jaxkv train mla_demo --out runs/mla_demo
Device    one H200; two CPU cores take 3 s a step of 8 rows of 512 tokens
Expected  tried for 60 such steps, not to its end: divergence 5.9 to 3.2 nats there

A token's entries are 80 numbers a layer where the demo's are 512. Every parameter is
trained towards the demo's own next words; rows are short at first, because how to copy
by a key of several words must be learned anew, as in configs/train/demo.py.
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
    stages=(
        Stage(1500, Documents(((256, 256),), Recipe(again=(0.3, 0.5), gaps=0.1))),
        Stage(7000, Documents(((24, 2048), (24, 512)))),
        Stage(800, Documents(((8, 4096), (16, 2048)))),
    ),
    objectives=(Divergence(),),
    optimizer=AdamW(WarmupCosine(1e-3)),
    save_every=2000,
)
