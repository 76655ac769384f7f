"""config.json to DecoderConfig and back."""

from dataclasses import replace

import pytest

from jaxkv.models.config import DecoderConfig, RopeScaling
from jaxkv.models.families import FAMILIES, read_config, write_config
from jaxkv.models.presets import preset, preset_names

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


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize("stops", [(), (3,), (3, 5)])
def test_round_trip(name, scaling, stops):
    config = DecoderConfig(
        architecture=name,
        rope_scaling=scaling,
        stop_tokens=stops,
        tie_embeddings=True,
        qk_norm=FAMILIES[name].qk_norm,
    )
    assert read_config(write_config(config, "float32")) == config


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
