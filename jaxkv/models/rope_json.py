"""How config.json describes RoPE, read and written."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxkv.models.frequencies import AnyScaling, RopeScaling, Yarn
from jaxkv.models.typed import typed

# A field of ours, its key in config.json, its type.
ORIGINAL = ("original_max_position", "original_max_position_embeddings", int)
SCALINGS: dict[str, tuple[type, tuple, dict[str, float]]] = {
    "llama3": (
        RopeScaling,
        (
            ("factor", "factor", float),
            ("low_freq_factor", "low_freq_factor", float),
            ("high_freq_factor", "high_freq_factor", float),
            ORIGINAL,
        ),
        {},
    ),
    "yarn": (
        Yarn,
        (
            ("factor", "factor", float),
            ORIGINAL,
            ("beta_fast", "beta_fast", float),
            ("beta_slow", "beta_slow", float),
            ("mscale", "mscale", float),
            ("mscale_all_dim", "mscale_all_dim", float),
        ),
        {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0},
    ),
}
"""RoPE types: the class of each, its fields as above, what stands for absent ones."""


def read_rope(
    data: Mapping[str, Any], kinds: Sequence[str]
) -> tuple[float, AnyScaling | None]:
    """(theta, scaling), from rope_parameters (transformers 5) or the older two keys."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"config.json: RoPE is described by {rope!r}, not an object.")
    merged = dict(data) | dict(rope)
    theta = typed(merged, "rope_theta", float)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if merged.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            "config.json: partial_rotary_factor is not 1, but only whole heads are "
            "rotated here; use another checkpoint."
        )
    if kind == "default":
        return theta, None
    if kind not in kinds:
        raise ValueError(
            f"config.json: the RoPE type {kind!r} is not one we have: "
            f"{', '.join(('default', *kinds))}."
        )
    if rope.get("attention_factor") is not None or rope.get("truncate") is False:
        raise ValueError(
            "config.json: RoPE has an attention_factor or a truncate of its own, which "
            "we cannot compute; use another checkpoint."
        )
    scaling, fields, absent = SCALINGS[kind]
    given = absent | {key: value for key, value in rope.items() if value is not None}
    least = {"mscale": 0, "mscale_all_dim": 0}
    return theta, scaling(
        **{n: typed(given, key, of, least.get(key)) for n, key, of in fields}
    )


def write_scaling(
    scaling: AnyScaling, kinds: Sequence[str], architecture: str
) -> dict[str, Any]:
    """What `read_rope` reads of a scaling; ValueError for one not among the kinds."""
    for name in kinds:
        kind, fields, _ = SCALINGS[name]
        if type(scaling) is kind:
            return {"rope_type": name} | {k: getattr(scaling, n) for n, k, _ in fields}
    raise ValueError(
        f"{architecture} cannot have RoPE scaled by {type(scaling).__name__}; it has "
        f"{', '.join(kinds)}."
    )
