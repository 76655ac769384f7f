"""Compiles for one TPU generation, on a machine that has none.

    python -m tests.tpu_compile v5e

Prints a JSON line for each program, as soon as it is compiled: some failures end the
process. libtpu must be installed; nothing is run and no array is made.
"""

import json
import os
import re
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec  # noqa: E402

from jaxkv.plan.topologies import devices as devices_of  # noqa: E402
from jaxkv.plan.topologies import topology  # noqa: E402
from pallas_kernels.call import Call  # noqa: E402
from pallas_kernels.dispatch import compile_for  # noqa: E402
from tests.llama_step import bytes_on_chip, llama_step, without_content  # noqa: E402
from tests.relayouts import relayouts  # noqa: E402
from tests.tpu_generations import GENERATIONS, LAYERS, STEP  # noqa: E402
from tests.tpu_ops import op_calls  # noqa: E402

KERNEL = re.compile(r"%?([a-z_]+)[\d.]* = .*custom_call_target=\"tpu_custom_call\"")


@dataclass(frozen=True)
class Compiled:
    """What came of one program; bytes are those of one chip, all at one time."""

    program: str
    error: str = ""
    seconds: float = 0.0
    resident: int = 0  # arguments, and results that take no argument's place
    temporary: int = 0
    code: int = 0
    donated: int = 0
    aliased: int = 0
    kernels: dict[str, int] = field(default_factory=dict)  # calls, by kernel
    relayouts: list[str] = field(default_factory=list)


def main() -> None:
    generation = GENERATIONS[sys.argv[1]]
    devices = np.array(devices_of(topology(generation.topology)))
    with compile_for("tpu"):
        for program, call in op_calls().items():
            report(program, compile_op, call, mesh_of(devices[:1], 1, 1))
        mesh = mesh_of(devices, generation.data, generation.tensor)
        report(STEP, compile_step, mesh)


def report(program: str, compile_it, *arguments) -> None:
    try:
        made = compile_it(program, *arguments)
    except Exception as error:  # every program is to be reported
        made = Compiled(program, f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(made)), flush=True)


def compile_op(program: str, call: Call, mesh: Mesh) -> Compiled:
    one_chip = NamedSharding(mesh, PartitionSpec())
    arrays = jax.tree.map(lambda x: without_content(x, one_chip), call.arrays)
    function = partial(call.function, **call.options)
    jitted = jax.jit(function, donate_argnames=call.donated)
    donated = bytes_on_chip([arrays[name] for name in call.donated])
    pool = {x.size for x in call.pool}
    return compiled(program, mesh, partial(jitted.lower, **arrays), pool, donated)


def compile_step(program: str, mesh: Mesh) -> Compiled:
    """The memory is that of all layers: temporaries and code grow with their number.

    Of all 32 layers compiled for v5e the temporaries were 1.3 % more than that.
    """
    part, whole = llama_step(mesh, LAYERS), llama_step(mesh)
    lower = partial(part.function.lower, part.model, part.turn)
    made = compiled(program, mesh, lower, part.pool, part.cache_bytes)
    times = len(whole.model.layers) / LAYERS
    return Compiled(
        **asdict(made)
        | {
            "resident": whole.model_bytes + bytes_on_chip(whole.turn),
            "temporary": int(made.temporary * times),
            "code": int(made.code * times),
        }
    )


def compiled(program: str, mesh: Mesh, lower, pool: set[int], donated: int) -> Compiled:
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        executable = lower().compile()
    seconds = time.perf_counter() - began
    memory, text = executable.memory_analysis(), executable.as_text()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        program,
        seconds=seconds,
        resident=memory.argument_size_in_bytes + results,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        donated=donated,
        aliased=memory.alias_size_in_bytes,
        kernels=dict(Counter(KERNEL.findall(text))),
        relayouts=relayouts(text, pool),
    )


def mesh_of(devices: np.ndarray, data: int, tensor: int) -> Mesh:
    types = (AxisType.Auto,) * 2
    return Mesh(devices.reshape(data, tensor), ("data", "tensor"), axis_types=types)


if __name__ == "__main__":
    main()
