"""Logits equal those of transformers, loading its folders and saving ours for it."""

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.deepseek_v2 import modeling_deepseek_v2  # noqa: E402

from jaxkv.calibrate.rows import task_tokens  # noqa: E402
from jaxkv.convert.trans_mla import TransMLA  # noqa: E402
from jaxkv.convert.x_ecomla import XEcoMLA  # noqa: E402
from jaxkv.evaluate.tasks import TASKS  # noqa: E402
from jaxkv.export.formats import export  # noqa: E402
from jaxkv.generate import generate  # noqa: E402
from jaxkv.method import method  # noqa: E402
from jaxkv.models import folder  # noqa: E402
from jaxkv.models.find import demo_folder  # noqa: E402
from jaxkv.models.folder import load, save  # noqa: E402
from jaxkv.models.safetensors import INDEX  # noqa: E402
from jaxkv.models.write_safetensors import SHARD, write_folder  # noqa: E402
from jaxkv.train.config import Stage  # noqa: E402
from jaxkv.train.config import load as recipe  # noqa: E402
from jaxkv.train.feeding import Documents  # noqa: E402
from jaxkv.train.loop import train  # noqa: E402

TOLERANCE = 1e-4  # fp32 logits, both sides
AFTER_DISTILLATION = 1e-3  # of weights that were rounded to bfloat16
SIZES = dict(
    vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=3
) | dict(num_attention_heads=6, num_key_value_heads=2, initializer_range=0.2)
LLAMA3_ROPE = dict(rope_type="llama3", rope_theta=5e5, factor=8.0) | dict(
    low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
LATENT = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"} | dict(
    kv_lora_rank=20, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12
)
DENSE = dict(first_k_dense_replace=3)  # all layers
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0) | dict(
    original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.0
)
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "llama3-rope": transformers.LlamaConfig(
        **SIZES, head_dim=16, max_position_embeddings=256, rope_parameters=LLAMA3_ROPE
    ),
    "llama-tied": transformers.LlamaConfig(
        **SIZES, tie_word_embeddings=True, eos_token_id=[2, 5]
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, head_dim=16),
    "qwen3-tied": transformers.Qwen3Config(
        **SIZES, head_dim=8, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE
    ),
    "deepseek-v3": transformers.DeepseekV3Config(**LATENT, **DENSE, q_lora_rank=24),
    "deepseek-v3-yarn": transformers.DeepseekV3Config(
        **LATENT, **DENSE, q_lora_rank=None, rope_parameters=YARN, num_mtp_layers=0
    ),
    "deepseek-v3-llama3-rope": transformers.DeepseekV3Config(
        **LATENT, **DENSE, q_lora_rank=24, rope_parameters=LLAMA3_ROPE
    ),
    "deepseek-v2": transformers.DeepseekV2Config(**LATENT, **DENSE, q_lora_rank=None),
}
if hasattr(modeling_deepseek_v2, "yarn_get_mscale"):
    # Before it did, theirs left YaRN's factor out of DeepSeek-V2's softmax.
    CONFIGS["deepseek-v2-yarn"] = transformers.DeepseekV2Config(
        **LATENT, **DENSE, q_lora_rank=None, rope_parameters=YARN
    )
IDS = np.random.default_rng(0).integers(0, 64, (2, 90))
DEMO = demo_folder()

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to fix


@pytest.fixture(params=CONFIGS)
def theirs(request):
    """A random model of theirs, its norm scales shaken off one."""
    torch.manual_seed(0)
    config = CONFIGS[request.param]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def their_logits(model, ids=IDS):
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids))).logits.numpy()


def test_their_folder_loads_here(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    ours, _ = load(tmp_path)
    difference = np.abs(np.asarray(ours(jnp.asarray(IDS))) - their_logits(theirs))
    assert difference.max() <= TOLERANCE


def test_their_shards_load_here(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert (tmp_path / INDEX).is_file()
    ours, _ = load(tmp_path)
    difference = np.abs(np.asarray(ours(jnp.asarray(IDS))) - their_logits(theirs))
    assert difference.max() <= TOLERANCE


@pytest.mark.parametrize("most", [SHARD, 30_000])
def test_our_folder_loads_there(theirs, most, tmp_path, monkeypatch):
    """As one file, and as shards."""
    monkeypatch.setattr(folder, "write_folder", partial(write_folder, most=most))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = load(tmp_path / "theirs")
    save(ours, None, tmp_path / "ours")
    assert (tmp_path / "ours" / INDEX).is_file() == (most < SHARD)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto", output_loading_info=True
    )
    assert not any(report.values())
    assert again.dtype == torch.float32
    np.testing.assert_array_equal(their_logits(again.eval()), their_logits(theirs))
    assert again.generation_config.eos_token_id == theirs.config.eos_token_id


@pytest.mark.parametrize("query_rank", [None, 96])
def test_the_demo_as_latents_loads_there(query_rank, tmp_path):
    converted = XEcoMLA(rank=64, rope_dim=32, query_rank=query_rank)(load(DEMO)[0])
    export(converted, None, tmp_path / "out", format="deepseek")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert type(theirs) is transformers.DeepseekV3ForCausalLM
    assert not any(report.values())
    ids = np.random.default_rng(0).integers(0, 512, (2, 300))
    difference = np.abs(
        np.asarray(converted(jnp.asarray(ids))) - their_logits(theirs.eval(), ids)
    )
    assert difference.max() <= TOLERANCE


@pytest.mark.parametrize("to", ["mla", "transmla"])
def test_what_was_distilled_in_bfloat16_loads_there(to, tmp_path):
    """The demo as latents after a few steps, as `jaxkv train` leaves it."""
    model, tokenizer = load(DEMO)
    if to == "mla":
        converted = XEcoMLA(rank=48, rope_dim=32)(model)
    else:
        rows = task_tokens(tokenizer, 256)
        converted = TransMLA(rank=64, rope_dim=64, fold=2)(model, rows)
    save(converted, tokenizer, tmp_path / "as-mla")
    feed = Documents(((2, 64),))
    train(
        replace(
            recipe("mla_demo"),
            model=str(tmp_path / "as-mla"),
            stages=(Stage(3, feed),),
            unrolled=False,
        ),
        tmp_path / "run",
    )
    distilled, _ = load(tmp_path / "run" / "model", jnp.bfloat16)
    export(distilled, None, tmp_path / "out", format="deepseek")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32
    )
    assert type(theirs) is transformers.DeepseekV3ForCausalLM
    ours, _ = load(tmp_path / "out")
    ids = np.random.default_rng(0).integers(0, 512, (2, 300))
    difference = np.abs(
        np.asarray(ours(jnp.asarray(ids))) - their_logits(theirs.eval(), ids)
    )
    assert difference.max() <= AFTER_DISTILLATION


def test_bfloat16_folder_keeps_its_dtype_there(tmp_path):
    config = CONFIGS["llama"]
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = load(tmp_path / "theirs", jnp.bfloat16)
    save(ours, None, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype="auto"
    )
    for name, parameter in again.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, theirs.get_parameter(name))


def test_our_tokenizer_loads_there(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, "w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    CONFIGS["llama-tied"].save_pretrained(tmp_path / "theirs")
    theirs = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama-tied"])
    theirs.save_pretrained(tmp_path / "theirs")
    save(load(tmp_path / "theirs")[0], tokenizer, tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again("w3 w5 w63").input_ids == tokenizer.encode("w3 w5 w63").ids
    assert again.eos_token_id == 2


def test_demo_generates_the_same():
    """A prompt and its 64 greedy tokens: their logits, and our tokens from pages."""
    ours, tokenizer = load(DEMO)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        DEMO, dtype=torch.float32
    ).eval()
    sample = TASKS["multi_key"](tokenizer, 400, np.random.default_rng(0))
    text = f"{sample.context} {sample.questions[0].text}"
    ids = np.array([tokenizer.encode(text).ids])
    length = ids.shape[1]
    for _ in range(64):
        best = their_logits(theirs, ids)[:, -1].argmax(-1)
        ids = np.concatenate([ids, best[:, None]], axis=1)
    difference = np.abs(np.asarray(ours(jnp.asarray(ids))) - their_logits(theirs, ids))
    assert difference.max() <= TOLERANCE
    full = generate(ours, ids[:, :length], method=method("full"), max_new_tokens=64)
    assert full[0] == ids[0, length:].tolist()
