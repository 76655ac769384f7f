"""A compiled program: bytes of a chip by kind, FLOPs, collectives, and time.

bytes   arguments + results that take no argument's place + temporaries + code,
        each as XLA's memory analysis has it
time    XLA's cycles over the clock, and kernels' products or reads at full speed; or
        what collectives take, where that is longer
floor   the longest of products, arguments read once, and collectives, at full speed
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxkv.plan.hlo import Collective, collectives, cycles, parameters, parse
from jaxkv.plan.products import kernel_flops, product_flops
from jaxkv.plan.topologies import Chip


@dataclass(frozen=True)
class Program:
    """What came of one program; bytes and FLOPs are those of one chip.

    xla_seconds: XLA's estimate, of a TPU; it knows neither kernels nor collectives.
    kernel_bytes: what kernels read of the arguments, at most.
    """

    name: str
    compile_seconds: float
    bytes: dict[str, int]
    flops: float
    kernel_flops: float
    kernel_bytes: int
    collectives: list[Collective]
    xla_seconds: float | None
    floor_seconds: float | None

    @property
    def total_bytes(self) -> int:
        """All kinds together."""
        return sum(self.bytes.values())

    def kernel_seconds(self, chip: Chip) -> float:
        """Of the kernels, whose time XLA does not estimate: a floor."""
        return max(self.kernel_flops / chip.flops, self.kernel_bytes / chip.read)

    def seconds(self, chip: Chip) -> float | None:
        """The estimate; None where XLA made none and there is no floor."""
        if self.xla_seconds is None:
            return self.floor_seconds
        own = self.xla_seconds + self.kernel_seconds(chip)
        return own if self.floor_seconds is None else max(own, self.floor_seconds)


def measure(
    name: str,
    traced: Any,
    compiled: Any,
    compile_seconds: float,
    kinds: Mapping[str, str],
    mesh: jax.sharding.Mesh,
    chip: Chip | None,
    kernels_read: str = "",
) -> Program:
    """The figures of a program that was traced and compiled for the mesh.

    kinds: what arguments are, by what their paths begin with; "" for all others. chip:
    that of the mesh; None for a CPU's, of which no time is told. kernels_read: the kind
    of what kernels read from memory, each byte once.
    """
    text = parse(compiled.as_text())
    found = collectives(text, dict(mesh.shape))
    by_kind = _bytes(compiled.memory_analysis(), parameters(text), kinds)
    flops = product_flops(traced.jaxpr) / mesh.size
    xla, floor = None, None
    if chip is not None:
        count = cycles(text)
        xla = None if count is None else count / chip.clock
        arguments = compiled.memory_analysis().argument_size_in_bytes
        sent = sum(one.sent for one in found)
        floor = max(flops / chip.flops, arguments / chip.read, sent / chip.links)
    return Program(
        name,
        compile_seconds,
        by_kind,
        flops,
        kernel_flops(traced.jaxpr) / mesh.size,
        by_kind.get(kernels_read, 0),
        found,
        xla,
        floor,
    )


def _bytes(
    memory: Any, arguments: list[tuple[str, int]], kinds: Mapping[str, str]
) -> dict[str, int]:
    """By kind; they sum to the memory analysis' figures.

    What XLA's argument size has beyond the arrays in their tiles is "alignment".
    """
    found = dict.fromkeys(kinds.values(), 0)
    for path, size in arguments:
        kind = next(kind for begin, kind in kinds.items() if path.startswith(begin))
        found[kind] += size
    told = sum(found.values())
    found["alignment"] = memory.argument_size_in_bytes - told
    found["results"] = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found["gradients and temporaries"] = memory.temp_size_in_bytes
    found["code"] = memory.generated_code_size_in_bytes
    return {kind: size for kind, size in found.items() if size}
