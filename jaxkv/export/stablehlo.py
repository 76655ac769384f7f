"""A model as two programs that run without jaxkv: a prefill and a decode step.

    prefill(parameters, token_ids [B, context], lengths [B]) -> logits [B, V], cache
    decode(parameters, cache, token_ids [B, 1], lengths [B]) -> logits [B, V], cache

Each is a `jax.export.Exported`, serialized: StableHLO for several platforms at once.
parameters and cache are dicts of arrays by name, which flatten in the order of their
names. Prompts are padded to the right, `lengths` of 1 to `context` tokens each; decode
takes a row's token where its `lengths` is 1, and leaves a row as it is where it is 0.
logits are float32, of the token to come. The cache holds what the method keeps, and
room for `max_new_tokens`; a row of "overflow" is true once a token found none.

The folder holds prefill.bin, decode.bin, parameters.safetensors, tokenizer.json,
run.py, which generates with them, and manifest.json, which names every input and output
in order. JAX goes by the caller's donation: `jax.jit(decode.call, donate_argnums=1)`
writes the cache in place. Who runs the StableHLO by other means finds donated arrays
marked in it, and before all inputs, where there are several platforms, one more: the
platform's index (docs.jax.dev, calling convention of jax.export).
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

import jaxkv
from jaxkv.cache.cache import Cache
from jaxkv.calibrate.store import calibration
from jaxkv.generate import SMALLEST_HEADROOM, check_context
from jaxkv.method import Method, method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from jaxkv.models.folder import saved_dtype
from jaxkv.models.new_folder import new_folder, refuse_to_overwrite
from jaxkv.models.write_safetensors import write
from jaxkv.params import Params, by_path, take_apart
from jaxkv.phases import feed
from jaxkv.pools import planned
from jaxkv.prefill import prefill_planned
from jaxkv.prompts import bucket
from pallas_kernels.dispatch import compile_for
from pallas_kernels.versions import MOSAIC_GPU

FORMAT = "jaxkv stablehlo 1"
PARAMETERS = "parameters.safetensors"
RUN = "run.py"
PLATFORMS = {
    "any": ("cpu", "cuda", "tpu"),
    "cpu": ("cpu",),
    "gpu": ("cuda",),
    "sm90": ("cuda",),
    "tpu": ("tpu",),
}
"""What a target's programs are lowered for."""
UNPROMISED = ("mosaic_gpu", "mosaic_gpu_v2", "__cudnn$fmhaSoftmax")
"""Calls of kernels and of cuDNN, which JAX does not promise to read for ever."""
Made = tuple[Float[Array, "B V"], Cache]


@dataclass(frozen=True)
class Programs:
    """What the programs do, and their static sizes.

    target: any, one program for every platform, by XLA alone; or cpu, gpu (with cuDNN's
    attention over prompts of 16 bits), sm90 (Hopper) or tpu, the last two with kernels.
    """

    method: Method = field(default_factory=lambda: method("full"))
    batch: int = 1
    context: int = 2048
    max_new_tokens: int = 256
    target: str = "any"

    def check(self, config: DecoderConfig) -> None:
        """Raises ValueError, one sentence, for what no program can be."""
        for name in ("batch", "context", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; give 1 at least.")
        check_context(config.max_position, self.context, self.max_new_tokens)
        if self.method.score.feed is not None:
            raise ValueError(
                f"{type(self.method.score).__name__} feeds as many tokens as a prompt "
                "has, and a program's sizes are static; export with a method such as "
                "snapkv."
            )
        if self.target not in PLATFORMS:
            known = ", ".join(PLATFORMS)
            raise ValueError(f"target={self.target!r} is not one of {known}.")
        if PLATFORMS[self.target] == ("cuda",) and jax.default_backend() != "gpu":
            raise ValueError(
                f"The target {self.target} calls what is looked for on the GPU of the "
                "machine that exports, and this one has none; give any."
            )
        if self.target == "sm90" and not MOSAIC_GPU:
            raise ValueError(
                f"Kernels for sm90 need jax 0.11 or newer, and this is "
                f"{jax.__version__}; give gpu, or any."
            )


def write_stablehlo(
    model: Decoder,
    tokenizer: Tokenizer | None,
    out: str | os.PathLike,
    dtype: DTypeLike | None = None,
    programs: Programs | None = None,
) -> list[str]:
    """Writes the folder; returns how to run it.

    dtype: of the parameters, the cache, and what is computed. A method that draws at
    random draws as with seed 0. Raises ValueError, one sentence, for sizes or a method
    that no program can have.
    """
    refuse_to_overwrite(Path(out))
    programs = Programs() if programs is None else programs
    programs.check(model.config)
    dtype = saved_dtype(model, dtype)
    parameters, _ = take_apart(model)
    parameters = {name: np.asarray(x, dtype) for name, x in parameters.items()}
    for kind in programs.method.calibrations:  # what is not there is made here and now
        calibration(model, kind, tokenizer=tokenizer)
    exported, described = _exported(model, parameters, programs)
    with new_folder(out) as beside:
        for name, program in exported.items():
            (beside / f"{name}.bin").write_bytes(program.serialize())
        write(beside / PARAMETERS, parameters)
        about = _manifest(model.config, programs, exported["decode"])
        about["programs"] = described
        (beside / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")
        shutil.copyfile(Path(__file__).with_name(RUN), beside / RUN)
        if tokenizer is not None:
            tokenizer.save(str(beside / "tokenizer.json"))
    return [f"It runs without jaxkv: {Path(out) / RUN} says how."]


def _exported(
    model: Decoder, parameters: Params, programs: Programs
) -> tuple[dict[str, jax.export.Exported], dict[str, Any]]:
    """Both programs, and what the manifest says of them."""
    again: Callable[[Params], Cache] | None = None  # known once a prefill is traced
    B = programs.batch

    def named(made: Made) -> tuple[Float[Array, "B V"], Params]:
        nonlocal again
        logits, cache = made
        by_name, again = by_path(cache)
        return logits.astype(jnp.float32), by_name

    def given(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    with compile_for(programs.target):
        prefill, rebuild = _prefill(model, programs), take_apart(model)[1]

        def run_prefill(parameters, token_ids, lengths):
            return named(prefill(parameters, token_ids, lengths))

        def run_decode(parameters, cache, token_ids, lengths):
            assert again is not None
            model = rebuild(parameters)
            return named(feed(model, again(cache), token_ids, lengths))

        prompts = {"token_ids": given(B, programs.context), "lengths": given(B)}
        of_prefill = {"parameters": parameters} | prompts
        prefilled = _export(run_prefill, of_prefill, programs.target)
        logits, cache = jax.tree.unflatten(prefilled.out_tree, prefilled.out_avals)
        tokens = {"token_ids": given(B, 1), "lengths": given(B)}
        of_decode = {"parameters": parameters, "cache": cache} | tokens
        decoded = _export(run_decode, of_decode, programs.target)
    results = {"logits": logits, "cache": cache}
    described = {
        name: {
            "file": f"{name}.bin",
            "inputs": _described(arguments),
            "outputs": _described(results),
            "donated": _donated(arguments),
        }
        for name, arguments in (("prefill", of_prefill), ("decode", of_decode))
    }
    return {"prefill": prefilled, "decode": decoded}, described


def _prefill(model: Decoder, programs: Programs) -> Callable[..., Made]:
    """What `jaxkv.generate` does before it draws the first token, as one program."""
    row, longest = programs.method, programs.context
    headroom = bucket(programs.max_new_tokens + 1, SMALLEST_HEADROOM)
    every = np.arange(1, longest + 1)
    plan = planned(model, row, every, longest, rerun=1, headroom=headroom, groups=1)
    slots, limits = _by_length(plan.slots), _by_length(plan.limits)
    _, rebuild = take_apart(model)

    def run(
        parameters: Params, token_ids: Int[Array, "B S"], lengths: Int[Array, " B"]
    ) -> Made:
        model = rebuild(parameters)
        own = replace(plan, slots=slots(lengths), limits=limits(lengths))
        (cache,) = prefill_planned(
            model,
            token_ids,
            lengths,
            (row,),
            (own,),
            rerun=1,
            seed=0,
            fed=lambda _: {},
        )
        last = jnp.take_along_axis(token_ids, lengths[:, None] - 1, axis=1)
        return feed(model, cache, last, jnp.ones_like(lengths))

    return run


def _by_length(
    of_each: np.ndarray | Array,
) -> Callable[[Int[Array, " B"]], Int[Array, "L B K"]]:
    """Slots of heads by a prompt's length, from those of every length [L, S, K].

    Many heads have the same for all lengths: each column is held once.
    """
    L, S, K = of_each.shape
    by_head = np.asarray(of_each).swapaxes(0, 1).reshape(S, L * K)
    columns, head = np.unique(by_head, axis=1, return_inverse=True)

    def of(lengths: Int[Array, " B"]) -> Int[Array, "L B K"]:
        rows = jnp.asarray(columns, jnp.int32)[lengths - 1][:, head.reshape(-1)]
        return rows.reshape(-1, L, K).swapaxes(0, 1)

    return of


def _export(
    function: Callable[..., Any], arguments: dict[str, Any], target: str
) -> jax.export.Exported:
    # What is not used is kept, so that the inputs are those of the manifest.
    jitted = jax.jit(function, donate_argnames=_donated(arguments), keep_unused=True)
    promises = [] if target == "any" else UNPROMISED
    return jax.export.export(
        jitted,
        platforms=PLATFORMS[target],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(name) for name in promises
        ],
    )(*arguments.values())


def _donated(arguments: dict[str, Any]) -> list[str]:
    return [name for name in arguments if name == "cache"]


def _described(trees: dict[str, Any]) -> list[dict[str, Any]]:
    """Every array, in the order in which they flatten."""
    return [
        {"argument": argument}
        | ({"name": name} if name else {})
        | {"shape": list(x.shape), "dtype": x.dtype.name}
        for argument, tree in trees.items()
        for name, x in by_path(tree)[0].items()
    ]


def _manifest(
    config: DecoderConfig, programs: Programs, exported: jax.export.Exported
) -> dict[str, Any]:
    """All that a manifest says but its programs' arrays."""
    return {
        "format": FORMAT,
        "jaxkv": jaxkv.__version__,
        "jax": jax.__version__,
        "platforms": list(exported.platforms),
        "target": programs.target,
        "calling_convention_version": exported.calling_convention_version,
        "method": repr(programs.method),
        "batch": programs.batch,
        "context": programs.context,
        "max_new_tokens": programs.max_new_tokens,
        "vocabulary": config.vocabulary,
        "stop_tokens": list(config.stop_tokens),
        "parameters": PARAMETERS,
    }
