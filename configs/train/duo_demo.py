"""DuoAttention's gates of the demo model (arXiv 2410.10819), in its own language.

Command   jaxkv train duo_demo --out runs/duo_demo
Device    two CPU cores
Expected  gates near 0 or 1

The paper trains 2000 steps at up to 32,000 tokens, of 128 sinks and 256 recents.
"""

from jaxkv.train.config import TrainGates

TRAIN = TrainGates(model="demo", steps=200, rows=1, length=1024, sinks=16, recent=112)
