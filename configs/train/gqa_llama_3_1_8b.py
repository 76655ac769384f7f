"""Up-training after pooling at Llama-3.1-8B's shape: eight kv heads become two (GQA).

Command   jaxkv convert --model FOLDER --to gqa --kv-heads 2 --out as-gqa
          jaxkv train gqa_llama_3_1_8b --model as-gqa
Device    a pod of 256 chips, TPU v5e 16x16
Expected  the paper's T5-XXL with 8 kv heads of 64 has 47.1 on average of its tasks,
          where the model has 47.2 and one kv head gives 46.6 (arXiv 2305.13245)

As the paper has it: heads are pooled by their mean, and the model goes on with its own
recipe for a twentieth of its steps, which for Llama 3.1 is 7.5e11 tokens; the rate is
that model's highest, 3e-4, and falls to a hundredth. Without --model weights are
random.
"""

from jaxkv.train.config import Stage, Train
from jaxkv.train.data import TokenFiles
from jaxkv.train.objectives import CrossEntropy
from jaxkv.train.optimizers import AdamW
from jaxkv.train.rows import Rows
from jaxkv.train.schedules import WarmupCosine

TRAIN = Train(
    model="llama-3.1-8b-gqa",
    stages=(
        Stage(
            178_814,
            Rows(
                TokenFiles(("data/*.bin",), dtype="uint32", boundary=128_001),
                rows=512,
                length=8192,
                apart=False,
            ),
        ),
    ),
    objectives=(CrossEntropy(logits_bytes=2**27),),
    optimizer=AdamW(
        WarmupCosine(3e-4, warmup=2000, final=0.01), b2=0.95, weight_decay=0.1
    ),
    micro=4,
    remat="full",
    mesh="fsdp=128,tensor=2",
    save_every=500,
    log_every=10,
)
