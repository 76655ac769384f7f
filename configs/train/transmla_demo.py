"""The demo with TransMLA's latents, trained on for a short while (arXiv 2502.07864).

Command   jaxkv convert --to transmla --rank 64 --rope-dim 64 --out as-transmla
          jaxkv train transmla_demo --out runs/transmla_demo
Device    one H200
Expected  0.996 on all tasks at 2048 tokens from a quarter of the cache (demo: 0.997)

A token's entries are 128 numbers a layer where the demo's are 512. As in the paper all
parameters go on by the language modelling loss.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="as-transmla",
    stages=(
        Stage(500, Documents(((256, 256),), Recipe(again=(0.3, 0.5), gaps=0.1))),
        Stage(1500, Documents(((24, 2048), (24, 512)))),
    ),
    optimizer=AdamW(WarmupCosine(1e-3, warmup=60, final=0.02)),
    unrolled=True,
    save_every=1000,
)
