"""The model families we read, and config.json to DecoderConfig and back.

A family is a row of small differences: the defaults its config.json leaves out, and the
values it must have because the decoder knows no others. Nothing else branches on it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxkv.models.config import DecoderConfig, RopeScaling


@dataclass(frozen=True)
class Family:
    """What one architecture's config.json means.

    `defaults` stand for absent keys (transformers leaves out what it deems usual);
    `required` lists the only values the decoder can compute.
    """

    model_type: str
    defaults: Mapping[str, Any]
    required: Mapping[str, Any] = field(default_factory=dict)
    qk_norm: bool = False


DENSE_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
DENSE_REQUIRED = {"hidden_act": "silu", "attention_bias": False}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        model_type="llama",
        defaults=DENSE_DEFAULTS | {"max_position_embeddings": 2048},
        required=DENSE_REQUIRED | {"mlp_bias": False},
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        defaults=DENSE_DEFAULTS | {"max_position_embeddings": 32768, "head_dim": 128},
        required=DENSE_REQUIRED | {"use_sliding_window": False},
        qk_norm=True,
    ),
}

# DecoderConfig's field, its key in config.json, its type.
FIELDS = (
    ("vocabulary", "vocab_size", int),
    ("width", "hidden_size", int),
    ("feed_forward", "intermediate_size", int),
    ("layers", "num_hidden_layers", int),
    ("query_heads", "num_attention_heads", int),
    ("kv_heads", "num_key_value_heads", int),
    ("head_dim", "head_dim", int),
    ("norm_eps", "rms_norm_eps", float),
    ("tie_embeddings", "tie_word_embeddings", bool),
    ("max_position", "max_position_embeddings", int),
    ("initial_scale", "initializer_range", float),
)
SCALING_FIELDS = (
    ("factor", "factor", float),
    ("low_freq_factor", "low_freq_factor", float),
    ("high_freq_factor", "high_freq_factor", float),
    ("original_max_position", "original_max_position_embeddings", int),
)


def read_config(
    data: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> DecoderConfig:
    """The DecoderConfig of a config.json.

    `generation` is generation_config.json, whose stop tokens win where it has any, as
    in transformers. Raises ValueError, one sentence, for what we cannot compute.
    """
    architecture = _architecture(data)
    family = FAMILIES[architecture]
    given = {key: value for key, value in data.items() if value is not None}
    merged = dict(family.defaults) | given
    for key, needed in family.required.items():
        if merged.get(key, needed) != needed:
            raise ValueError(
                f"config.json: {key} is {merged[key]!r}, but {architecture} is read "
                f"only with {key} = {needed!r}; use another checkpoint."
            )
    heads = _typed(merged, "num_attention_heads", int)
    merged.setdefault("num_key_value_heads", heads)
    merged.setdefault("head_dim", _typed(merged, "hidden_size", int) // heads)
    theta, scaling = _read_rope(merged)
    return DecoderConfig(
        architecture=architecture,
        qk_norm=family.qk_norm,
        rope_theta=theta,
        rope_scaling=scaling,
        stop_tokens=_stop_tokens(generation or {}) or _stop_tokens(data),
        **{name: _typed(merged, key, kind) for name, key, kind in FIELDS},
    )


def write_config(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a DecoderConfig; `dtype` is the saved weights', "bfloat16".

    RoPE is written where transformers 4 looks for it; transformers 5 reads that too.
    """
    if config.architecture not in FAMILIES:
        raise ValueError(_unknown(config.architecture))
    family = FAMILIES[config.architecture]
    if family.qk_norm != config.qk_norm:
        raise ValueError(
            f"qk_norm={config.qk_norm} cannot be written as {config.architecture}, "
            f"which has qk_norm={family.qk_norm}; choose another architecture."
        )
    data: dict[str, Any] = {"architectures": [config.architecture]}
    data |= {"model_type": family.model_type}
    data |= {key: getattr(config, name) for name, key, _ in FIELDS}
    data |= dict(family.required)
    data["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        scaling = {k: getattr(config.rope_scaling, n) for n, k, _ in SCALING_FIELDS}
        data["rope_scaling"] = {"rope_type": "llama3"} | scaling
    return data | {"dtype": dtype, "use_cache": True} | stop_fields(config)


def stop_fields(config: DecoderConfig) -> dict[str, Any]:
    """The eos_token_id entry of config.json and generation_config.json."""
    stops = list(config.stop_tokens)
    return {"eos_token_id": stops[0] if len(stops) == 1 else (stops or None)}


def _architecture(data: Mapping[str, Any]) -> str:
    names = data.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(_unknown(name))
    return name


def _unknown(name: object) -> str:
    known = ", ".join(FAMILIES)
    return f"config.json: the architecture {name!r} is not one we have: {known}."


def _read_rope(data: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), from rope_parameters (transformers 5) or the older two keys."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"config.json: RoPE is described by {rope!r}, not an object.")
    merged = dict(data) | dict(rope)
    theta = _typed(merged, "rope_theta", float)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if merged.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "config.json: partial_rotary_factor is not 1, but only whole heads are "
            "rotated here; use another checkpoint."
        )
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(
            f"config.json: the RoPE type {kind!r} is not one we have: default, llama3."
        )
    fields = {name: _typed(rope, key, of) for name, key, of in SCALING_FIELDS}
    return theta, RopeScaling(**fields)


def _stop_tokens(data: Mapping[str, Any]) -> tuple[int, ...]:
    found = data.get("eos_token_id")
    stops = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(stop) is not int or stop < 0 for stop in stops):
        raise ValueError(
            f"config.json: eos_token_id is {found!r}; it must be a token id or a list "
            "of them."
        )
    return tuple(stops)


def _typed(data: Mapping[str, Any], key: str, kind: type) -> Any:
    """data[key] as `kind`; numbers must be positive."""
    if key not in data:
        raise ValueError(f"config.json: {key} is missing; add it.")
    value = data[key]
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is not bool and not 0 < value < math.inf):
        what = "true or false" if kind is bool else f"a positive {kind.__name__}"
        raise ValueError(f"config.json: {key} is {value!r}; it must be {what}.")
    return kind(value)
