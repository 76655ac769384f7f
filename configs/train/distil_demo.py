"""The demo model's attention learns to do with few tokens what it does with all.

Command   jaxkv train distil_demo --out runs/distil_demo
Device    two CPU cores; 1 s a step of 2 rows, after 40 s
Expected  tried for 8 steps, not to its end: divergence 2 to 6 nats there

Every head of the student streams: it sees 4 sinks and 60 recent tokens. Its attention's
weights are trained towards the demo's own words, hidden states and attention outputs;
all else stays as it is. The model is then one to decode with `streaming_llm`.
"""

from jaxkv.train.add_ons.gates import Gates
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import AttentionOutputs, Divergence, HiddenStates
from jaxkv.train.optimizers import AdamW
from jaxkv.train.recipe import Recipe
from jaxkv.train.schedules import Linear, WarmupCosine

TRAIN = Train(
    model="demo",
    teacher="itself",
    add_on=Gates(sinks=4, recent=60, first=0.0),
    trainable=("layers.*.attention.*",),
    stages=(Stage(200, Documents(((8, 256),), Recipe(gaps=0.0))),),
    objectives=(
        Divergence(temperature=2.0, top=64),
        HiddenStates(weight=Linear(0.05, 0.005)),
        AttentionOutputs(weight=0.2),
    ),
    optimizer=AdamW(WarmupCosine(5e-4, warmup=20)),
    dtype="float32",
    save_every=50,
    log_every=5,
)
