"""DuoAttention's gates of the demo model (arXiv 2410.10819), in its own language.

Command   jaxkv train duo_demo --out runs/duo_demo
Device    two CPU cores; about 7 minutes of CPU time (2 s a step)
Expected  squared distance near 0.01, mean gate near 0.5; layer 1's gates stay near 1

The paper trains 2000 steps at up to 32,000 tokens, of 128 sinks and 256 recents.
"""

from jaxkv.train.add_ons.gates import Gates
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import HiddenStates, MeanKept
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import RiseStayFall

TRAIN = Train(
    model="demo",
    teacher="itself",
    add_on=Gates(sinks=16, recent=112),
    trainable=("add_on.*",),
    stages=(Stage(200, Documents(((1, 1024),), Recipe(gaps=0.0), weigh="answers")),),
    objectives=(HiddenStates("last"), MeanKept(weight=0.05)),
    optimizer=AdamW(
        rate=RiseStayFall(0.02),
        b2=0.999,
        weight_decay=0.0,
        clip=None,
        within=(0.0, 1.0),
    ),
    dtype="float32",
    save_every=50,
    log_every=5,
)
