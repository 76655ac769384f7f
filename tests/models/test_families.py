"""config.json to DecoderConfig and back."""

from dataclasses import replace

import pytest

from jaxkv.models.config import DecoderConfig
from jaxkv.models.families import FAMILIES, read_config, write_config
from jaxkv.models.frequencies import RopeScaling, Yarn
from jaxkv.models.presets import preset, preset_names
from jaxkv.models.sizes import LatentSizes

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rope_theta": 5e5,
}
QWEN = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)
LATENT = LatentSizes(rank=24, rope_dim=8, nope_dim=16, value_dim=12)
DEEPSEEK = {
    key: value for key, value in LLAMA.items() if key != "num_key_value_heads"
} | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
}


def of_family(name: str) -> dict:
    """What only such a family's configs have."""
    if not FAMILIES[name].latent:
        return {}
    # Grouped queries, which there are none of, have the sizes that stand for none.
    return dict(kv_heads=8, head_dim=8, attention=(LATENT,) * 6)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize("stops", [(), (3,), (3, 5)])
def test_round_trip(name, scaling, stops):
    config = DecoderConfig(
        **of_family(name),
        architecture=name,
        rope_scaling=scaling,
        stop_tokens=stops,
        tie_embeddings=True,
        qk_norm=FAMILIES[name].qk_norm,
    )
    assert read_config(write_config(config, "float32")) == config


def test_each_layer_attends_as_listed():
    """No other reader takes such a folder for a Llama."""
    sizes = replace(LATENT, query_rank=20, norm=False)
    config = DecoderConfig(layers=3, attention=(None, sizes, LATENT))
    data = write_config(config, "float32")
    assert data["model_type"] == "jaxkv"
    assert read_config(data) == config
    with pytest.raises(ValueError, match="neither null nor the sizes"):
        read_config(data | {"attention": [None, None, {"kind": "latent", "ranks": 3}]})
    with pytest.raises(ValueError, match="names 2 layers and there are 3"):
        read_config(data | {"attention": [None, None]})
    with pytest.raises(ValueError, match="rope_dim=7 is odd"):
        read_config(
            data | {"attention": [None, None, {"kind": "latent", "rope_dim": 7}]}
        )


def test_deepseek():
    config = read_config(DEEPSEEK)
    assert config.attention == (LATENT, LATENT)
    assert read_config(DEEPSEEK | {"q_lora_rank": 20}).sizes(1).query_rank == 20
    sizes = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim")
    usual = {k: v for k, v in DEEPSEEK.items() if k not in (*sizes, "v_head_dim")}
    assert read_config(usual).sizes(0) == LatentSizes(query_rank=1536)
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    scaled = read_config(DEEPSEEK | {"rope_scaling": yarn | {"mscale": 1}})
    assert scaled.rope_scaling == Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=0.0)
    assert read_config(write_config(scaled, "float32")) == scaled
    dense = {"first_k_dense_replace": 0, "n_routed_experts": None}
    assert read_config(DEEPSEEK | dense) == config


DEEPSEEK_REFUSED = {
    "experts": ({"first_k_dense_replace": 1}, "layers from 1 on are mixtures"),
    "interleave": ({"rope_interleave": False}, "rope_interleave is False"),
    "bias": ({"attention_bias": True}, "attention_bias is True"),
    "rank": ({"kv_lora_rank": 0}, "kv_lora_rank is 0"),
    "rope": ({"qk_rope_head_dim": 7}, "rope_dim=7 is odd"),
    "yarn": (
        {"rope_scaling": {"rope_type": "yarn", "attention_factor": 1.2}},
        "attention_factor",
    ),
}


@pytest.mark.parametrize(
    ("change", "message"), DEEPSEEK_REFUSED.values(), ids=DEEPSEEK_REFUSED
)
def test_deepseek_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(DEEPSEEK | change)


def test_what_deepseek_cannot_say():
    def written(**change):
        about = dict(layers=2, attention=(LATENT, LATENT)) | change
        config = DecoderConfig(architecture="DeepseekV3ForCausalLM", **about)
        return write_config(config, "float32")

    written()
    with pytest.raises(ValueError, match="attend with grouped queries"):
        written(attention=())
    with pytest.raises(ValueError, match="attend with grouped queries"):
        written(attention=(LATENT, None))
    with pytest.raises(ValueError, match="to latents of different sizes"):
        written(attention=(LATENT, replace(LATENT, rank=16)))
    with pytest.raises(ValueError, match="not normed"):
        written(attention=(replace(LATENT, norm=False),) * 2)
    with pytest.raises(ValueError, match="qk_norm=True"):
        written(qk_norm=True)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot have RoPE scaled"):
        llama = DecoderConfig(rope_scaling=Yarn(4.0, 64))
        write_config(llama, "float32")


@pytest.mark.parametrize("name", preset_names())
def test_presets_round_trip(name):
    config = preset(name)
    assert read_config(write_config(config, "bfloat16")) == config


def test_defaults():
    config = read_config(LLAMA)
    assert (config.head_dim, config.norm_eps, config.max_position) == (8, 1e-6, 2048)
    assert not config.tie_embeddings and not config.qk_norm
    assert read_config(LLAMA | {"num_key_value_heads": None}).kv_heads == 4
    assert read_config(QWEN).head_dim == 128
    assert read_config(QWEN).qk_norm


def test_rope_in_both_places():
    old = read_config(LLAMA | {"rope_scaling": LLAMA3_ROPE})
    without = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    new = read_config(without | {"rope_parameters": LLAMA3_ROPE | {"rope_theta": 5e5}})
    assert old == new
    assert old.rope_scaling == SCALING and old.rope_theta == 5e5
    plain = read_config(without | {"rope_parameters": {"rope_type": "default"}})
    assert plain.rope_theta == 10_000.0 and plain.rope_scaling is None


def test_stop_tokens():
    assert read_config(LLAMA | {"eos_token_id": 2}).stop_tokens == (2,)
    assert read_config(LLAMA | {"eos_token_id": [2, 7]}).stop_tokens == (2, 7)
    assert read_config(LLAMA | {"eos_token_id": None}).stop_tokens == ()
    both = read_config(LLAMA | {"eos_token_id": 2}, {"eos_token_id": [2, 7]})
    assert both.stop_tokens == (2, 7)
    assert read_config(LLAMA | {"eos_token_id": 2}, {}).stop_tokens == (2,)


REFUSED = {
    "architecture": ({"architectures": ["MambaForCausalLM"]}, "LlamaForCausalLM, Qwen"),
    "no architecture": ({"architectures": None}, "not one we have"),
    "attention bias": ({"attention_bias": True}, "attention_bias is True"),
    "mlp bias": ({"mlp_bias": True}, "mlp_bias is True"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "rope type": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "RoPE type 'yarn'",
    ),
    "rope field": ({"rope_scaling": {"rope_type": "llama3"}}, "factor is missing"),
    "rope no object": ({"rope_scaling": 2.0}, "not an object"),
    "partial rope": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "missing size": ({"vocab_size": None}, "vocab_size is missing"),
    "text as size": ({"vocab_size": "96"}, "must be a positive int"),
    "no layers": ({"num_hidden_layers": 0}, "must be a positive int"),
    "no heads": ({"num_attention_heads": 0}, "must be a positive int"),
    "not a number": ({"rms_norm_eps": float("nan")}, "must be a positive float"),
    "tie no bool": ({"tie_word_embeddings": 1}, "must be true or false"),
    "stop token": ({"eos_token_id": "</s>"}, "eos_token_id"),
    "heads": ({"num_key_value_heads": 3}, "not a multiple"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(LLAMA | change)


def test_qwen3_sliding_window_is_refused():
    with pytest.raises(ValueError, match="use_sliding_window is True"):
        read_config(QWEN | {"use_sliding_window": True})


def test_writing_what_no_family_says():
    with pytest.raises(ValueError, match="not one we have"):
        write_config(DecoderConfig(architecture="Other"), "float32")
    with pytest.raises(ValueError, match="qk_norm=True cannot be written"):
        write_config(replace(DecoderConfig(), qk_norm=True), "float32")
