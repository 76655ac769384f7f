"""The demo's keys and values in bases that may be cut to any rank (MatryoshkaKV).

Command   jaxkv convert --to matryoshka --keep-bytes 1 --out as-low-rank
          jaxkv train matryoshka_demo --out runs/matryoshka_demo
          jaxkv convert --model runs/matryoshka_demo/model --to matryoshka \\
              --no-search --key-share 0.6 --keep-bytes 0.4 --out cut
Device    one H200
Expected  what ships as `demo-matryoshka`: answers of documents of 2048 words exactly
          right 0.99 times as often as the demo's at 60 % of the bytes, 0.96 at 50 %,
          0.91 at 40 %, 0.76 at 33 % (notebooks/LOG.md)

The last command cuts to a share of the bytes, as often as one likes and without
training. The model itself is frozen: only its bases turn, and the values' means move,
towards its own next words and the text's, as the paper weighs the two (0.25 and 0.75).
"""

from jaxkv.train.add_ons.bases import Bases
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.objectives import CrossEntropy, Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="as-low-rank",
    teacher="itself",
    add_on=Bases(),
    trainable=("add_on.*",),
    stages=(Stage(3000, Documents(((24, 2048), (24, 512)))),),
    objectives=(Divergence(weight=0.25), CrossEntropy(weight=0.75)),
    optimizer=AdamW(WarmupCosine(1e-3, warmup=100, final=0.0), weight_decay=0.0),
    dtype="bfloat16",
    unrolled=True,
    save_every=1000,
)
