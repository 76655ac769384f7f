"""The model families we read, and config.json to DecoderConfig and back.

A family is a row of small differences: the defaults its config.json leaves out, the
values it must have because the decoder knows no others, and whether its layers attend
to latents. A model whose layers attend as no family's do is written with a list of its
own, "attention", and the model_type "jaxkv", so that nobody else takes it for one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxkv.models.config import DecoderConfig
from jaxkv.models.rope_json import read_rope, write_scaling
from jaxkv.models.sizes import LatentSizes, Sizes, read_sizes, write_sizes
from jaxkv.models.typed import typed


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
    latent: bool = False  # attention in every layer, DeepSeek's
    scalings: tuple[str, ...] = ("llama3",)  # of RoPE, besides none


OUR_TYPE = "jaxkv"
DENSE_DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
DENSE_REQUIRED = {"hidden_act": "silu", "attention_bias": False}
LATENT_DEFAULTS = DENSE_DEFAULTS | {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}

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
    "DeepseekV2ForCausalLM": Family(
        model_type="deepseek_v2",
        defaults=LATENT_DEFAULTS
        | {"max_position_embeddings": 2048, "first_k_dense_replace": 0},
        required=DENSE_REQUIRED | {"mlp_bias": False},
        latent=True,
        scalings=("yarn", "llama3"),
    ),
    "DeepseekV3ForCausalLM": Family(
        model_type="deepseek_v3",
        defaults=LATENT_DEFAULTS
        | {"max_position_embeddings": 4096, "first_k_dense_replace": 3},
        required=DENSE_REQUIRED | {"rope_interleave": True},
        latent=True,
        scalings=("yarn", "llama3"),
    ),
}

# DecoderConfig's field, its key in config.json, its type.
FIELDS = (
    ("vocabulary", "vocab_size", int),
    ("width", "hidden_size", int),
    ("feed_forward", "intermediate_size", int),
    ("layers", "num_hidden_layers", int),
    ("query_heads", "num_attention_heads", int),
    ("norm_eps", "rms_norm_eps", float),
    ("tie_embeddings", "tie_word_embeddings", bool),
    ("max_position", "max_position_embeddings", int),
    ("initial_scale", "initializer_range", float),
)
HEAD_FIELDS = (  # of grouped queries
    ("kv_heads", "num_key_value_heads", int),
    ("head_dim", "head_dim", int),
)
LATENT_FIELDS = (  # of LatentSizes
    ("rank", "kv_lora_rank", int),
    ("rope_dim", "qk_rope_head_dim", int),
    ("nope_dim", "qk_nope_head_dim", int),
    ("value_dim", "v_head_dim", int),
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
    heads = typed(merged, "num_attention_heads", int)
    merged.setdefault("num_key_value_heads", heads)
    merged.setdefault("head_dim", typed(merged, "hidden_size", int) // heads)
    theta, scaling = read_rope(merged, family.scalings)
    fields = FIELDS if family.latent else FIELDS + HEAD_FIELDS
    return DecoderConfig(
        architecture=architecture,
        qk_norm=family.qk_norm,
        rope_theta=theta,
        rope_scaling=scaling,
        stop_tokens=_stop_tokens(generation or {}) or _stop_tokens(data),
        **{name: typed(merged, key, kind) for name, key, kind in fields},
        **_attention(data, merged, family),
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
    data |= _write_attention(config, family)
    data["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        scaled = config.rope_scaling, family.scalings, config.architecture
        data["rope_scaling"] = write_scaling(*scaled)
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


def _attention(
    data: Mapping[str, Any], merged: Mapping[str, Any], family: Family
) -> dict[str, Any]:
    """DecoderConfig's fields that say what each layer attends with."""
    layers = typed(merged, "num_hidden_layers", int)
    if not family.latent:
        listed = data.get("attention")
        return {} if listed is None else {"attention": tuple(map(read_sizes, listed))}
    dense = typed(merged, "first_k_dense_replace", int, least=0)
    # An explicit null is a model without experts; an absent key is one with many.
    if dense < layers and data.get("n_routed_experts", layers) is not None:
        raise ValueError(
            f"config.json: layers from {dense} on are mixtures of experts "
            "(first_k_dense_replace), and only dense layers are read; use another "
            "checkpoint."
        )
    without = "q_lora_rank" in data and data["q_lora_rank"] is None
    sizes = LatentSizes(
        query_rank=None if without else typed(merged, "q_lora_rank", int),
        **{name: typed(merged, key, kind) for name, key, kind in LATENT_FIELDS},
    )
    heads = {"kv_heads": merged["num_attention_heads"], "head_dim": sizes.rope_dim}
    return heads | {"attention": (sizes,) * layers}


def _write_attention(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """What `_attention` reads."""
    if not family.latent:
        data = {key: getattr(config, name) for name, key, _ in HEAD_FIELDS}
        if not any(config.attention):
            return data
        listed = list(map(write_sizes, config.attention))
        return data | {"model_type": OUR_TYPE, "attention": listed}
    first = config.sizes(0)
    if not isinstance(first, LatentSizes) or set(config.attention) != {first}:
        raise ValueError(
            f"The model's layers attend {_otherwise(config.attention)}, and all layers "
            f"of a {config.architecture} to latents of one size; convert every layer, "
            "to the same ranks (--rank, or --same-rank)."
        )
    if not first.norm:
        raise ValueError(
            f"The latents are not normed, and those of a {config.architecture} are; "
            "convert with a norm."
        )
    data = {key: getattr(first, name) for name, key, _ in LATENT_FIELDS}
    data |= {"q_lora_rank": first.query_rank, "first_k_dense_replace": config.layers}
    return data | {
        "num_key_value_heads": config.query_heads,
        "num_nextn_predict_layers": 0,
    }


def _otherwise(attention: tuple[Sizes | None, ...]) -> str:
    """How layers attend that do not attend to latents of one size."""
    if not attention or None in attention:
        return "with grouped queries"
    if all(isinstance(sizes, LatentSizes) for sizes in attention):
        return "to latents of different sizes"
    return f"as {', '.join(sorted({s.kind for s in attention if s is not None}))}"


def _stop_tokens(data: Mapping[str, Any]) -> tuple[int, ...]:
    found = data.get("eos_token_id")
    stops = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(stop) is not int or stop < 0 for stop in stops):
        raise ValueError(
            f"config.json: eos_token_id is {found!r}; it must be a token id or a list "
            "of them."
        )
    return tuple(stops)
