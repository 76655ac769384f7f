"""MatryoshkaKV's bases at Llama-3.1-8B's shape: the model frozen, 8.4M numbers trained.

Command   jaxkv convert --model FOLDER --to matryoshka --keep-bytes 1 --out as-low-rank
          jaxkv train matryoshka_llama_3_1_8b --model as-low-rank
          jaxkv convert --model runs/matryoshka_llama_3_1_8b/model --to matryoshka \\
              --keep-bytes 0.4 --out cut
Device    a pod of 256 chips, TPU v5e 16x16
Expected  the paper's LLaMA2-7B and Mistral-7B keep over 90 % of their scores with 40 %
          of the cache (arXiv 2410.14731)

As the paper has it: ranks drawn from an eighth of a head to all of it, anew for each
layer, head, key and value; a quarter of the divergence from the model itself and three
quarters of the next word's loss, rows of 2048 tokens, a rate of 1e-3 that falls along a
cosine after 100 steps, 1e9 tokens. Its bases are of query heads; ours of kv heads.
"""

from jaxkv.train.add_ons.bases import Bases
from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import CrossEntropy, Divergence
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.1-8b-matryoshka",
    teacher="itself",
    add_on=Bases(),
    trainable=("add_on.*",),
    stages=(
        Stage(
            1907,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=256,
                length=2048,
                apart=False,
            ),
        ),
    ),
    objectives=(
        Divergence(weight=0.25, logits_bytes=2**27),
        CrossEntropy(weight=0.75, logits_bytes=2**27),
    ),
    optimizer=AdamW(
        WarmupCosine(1e-3, warmup=100, final=0.0), b2=0.999, weight_decay=0.0
    ),
    remat="full",
    mesh="fsdp=64,tensor=4",
    save_every=500,
    log_every=10,
)
