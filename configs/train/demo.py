"""The demo decoder: 5M parameters that do all eighteen tasks at 2048 and 4096 tokens.

Command   jaxkv train demo --out runs/demo
Device    one H200; 6.5 minutes (389 s; 65,536 tokens in 19.5 ms at up to 2048 tokens)
Expected  answers exactly right in training: 0.990 at 2048 tokens, 0.967 at 8192;
          0.998 at 2048 without quotations and tallies (whose counts may tie)

The curriculum begins at 128 words, where copying by a key of several words emerges
within some hundred steps; started at 2048 it takes many times as long.
"""

from jaxkv.models.config import DecoderConfig
from jaxkv.train.config import Stage, Train
from jaxkv.train.feeding import Documents
from jaxkv.train.recipe import Recipe

TRAIN = Train(
    model=DecoderConfig(
        vocabulary=512,
        width=256,
        feed_forward=512,
        layers=6,
        query_heads=8,
        kv_heads=4,
        head_dim=64,
        tie_embeddings=True,
        max_position=8192,
    ),
    stages=(
        Stage(2500, Documents(((512, 128),), Recipe(again=(0.3, 0.5), gaps=0.1))),
        Stage(13000, Documents(((24, 2048), (24, 512), (32, 128)))),
        Stage(1500, Documents(((4, 8192), (5, 4096), (6, 2048)))),
    ),
    unrolled=True,
    save_every=4000,
)
