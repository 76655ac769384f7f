"""The text of a compiled program: how often each line runs, collectives, cycles.

XLA's own counts take a loop's body once. Here it counts as often as the loop turns.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import jax.numpy as jnp
import numpy as np

HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\](?:\{([^{}]*)\})?")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}(?:, device_ids=(\([^ ]*\)))?"
)
IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?")
KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
DTYPES = {"pred": 1, "bf16": 2, "s4": 1, "u4": 1}


@dataclass(frozen=True)
class Line:
    """An instruction; `result` is its type, `rest` its operands and attributes."""

    name: str
    result: str
    op: str
    rest: str


@dataclass(frozen=True)
class Collective:
    """Of all times that it runs: `sent` bytes are what each chip sends at least."""

    kind: str
    axes: str  # of the mesh, as "fsdp" or "data x fsdp"
    times: int
    sent: float


@dataclass(frozen=True)
class Text:
    """A program's computations by name."""

    entry: str
    computations: dict[str, list[Line]]

    def runs(self, through_fusions: bool) -> Iterator[tuple[str, Line, int]]:
        """(its computation, a line, how often it runs) for every line."""
        times: Counter[str] = Counter({self.entry: 1})
        order = [self.entry]
        for name in order:  # callers come before what they call
            for line in self.computations.get(name, []):
                yield name, line, times[name]
                if line.op == "fusion" and not through_fusions:
                    continue
                turns = self._turns(line) if line.op == "while" else 1
                for called in _called(line):
                    if called not in times:
                        order.append(called)
                    times[called] = max(times[called], times[name] * turns)

    def _turns(self, line: Line) -> int:
        """Of a loop: XLA's word, or the constant that its counter is held against."""
        known = re.search(r'known_trip_count[":{ ]*n[": ]*(\d+)', line.rest)
        if known:
            return int(known.group(1))
        condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
        lines = self.computations.get(condition.group(1), []) if condition else []
        found = [
            int(constant.group(1))
            for one in lines
            if one.op == "constant" and one.result.startswith("s32[]")
            if (constant := re.match(r"(\d+)\)", one.rest))
        ]
        return max(found, default=1)


def parse(text: str) -> Text:
    """The computations of an HLO module's text."""
    computations: dict[str, list[Line]] = {}
    entry, current = "", ""
    for raw in text.splitlines():
        if header := HEADER.match(raw):
            current = header.group(2)
            computations[current] = []
            entry = current if header.group(1) else entry
        elif current and (line := LINE.match(raw)):
            computations[current].append(Line(*line.groups()))
    return Text(entry, computations)


def cycles(text: Text) -> int | None:
    """What XLA expects its operations to take; None where it says nothing.

    Of Pallas kernels and of collectives it says nothing.
    """
    found = [
        int(said.group(1)) * times
        for _, line, times in text.runs(through_fusions=False)
        if (said := CYCLES.search(line.rest))
    ]
    return sum(found) if found else None


def collectives(text: Text, mesh: dict[str, int]) -> list[Collective]:
    """Summed by kind and axes of the mesh, the largest first.

    A collective that XLA spreads over several fusions has one channel, and counts once.
    """
    seen: dict[str, Collective] = {}
    for where, line, times in text.runs(through_fusions=True):
        kind = line.op.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", line.rest)
        key = channel.group(1) if channel else f"{where} {line.name}"
        before = seen[key].times if key in seen else 0
        if times > before:
            seen[key] = _one(kind, where, line, times, mesh)
    summed: dict[tuple[str, str], Collective] = {}
    for one in seen.values():
        if one.axes:
            at = one.kind, one.axes
            old = summed.get(at, replace(one, times=0, sent=0.0))
            both = {"times": old.times + one.times, "sent": old.sent + one.sent}
            summed[at] = replace(one, **both)
    return sorted(summed.values(), key=lambda one: -one.sent)


def parameters(text: Text) -> list[tuple[str, int]]:
    """(the path of an argument, its bytes on a chip with the padding of its layout)."""
    found = []
    for line in text.computations[text.entry]:
        if line.op == "parameter":
            said = re.search(r'op_name="((?:[^"\\]|\\.)*)"', line.rest)
            path = said.group(1).replace("\\'", "'") if said else ""
            found.append((path, padded_bytes(line.result)))
    return found


def padded_bytes(result: str) -> int:
    """Of all arrays of an HLO type, in its layout's tiles, as T(8,128)."""
    return sum(_padded(*array.groups()) for array in ARRAY.finditer(result))


def array_bytes(result: str) -> list[int]:
    """Of each array of an HLO type, as it is counted: without padding."""
    return [
        prod(_numbers(sizes)) * itemsize(dtype)
        for dtype, sizes, _ in ARRAY.findall(result)
    ]


def itemsize(dtype: str) -> int:
    """Bytes of an element of an HLO type."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return max(int(bits.group(1)) // 8, 1) if bits else jnp.dtype(dtype).itemsize


def _padded(dtype: str, sizes: str, layout: str | None) -> int:
    order, _, tiles = (layout or "").partition(":")
    shape = _numbers(sizes)
    if order:
        shape = [shape[i] for i in reversed(_numbers(order))]  # major to minor
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile:
        by = _numbers(tile.group(1))
        shape = [1] * (len(by) - len(shape)) + shape
        whole = len(shape) - len(by)
        shape = shape[:whole] + [
            -(-size // unit) * unit
            for size, unit in zip(shape[whole:], by, strict=True)
        ]
    return prod(shape) * itemsize(dtype)


def _one(
    kind: str, where: str, line: Line, times: int, mesh: dict[str, int]
) -> Collective:
    group = _group(line.rest, mesh)
    arrays = array_bytes(line.result)
    if line.op.endswith("-start") and kind != "all-reduce":
        arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[:1]
    size, n = float(sum(arrays)), len(group)
    if kind == "all-reduce" and "all-reduce-scatter" in where:
        kind = "reduce-scatter"  # a TPU's: an all-reduce that is cut where it is made
    elif kind == "reduce-scatter":
        size *= n  # of what goes in
    share = (n - 1) / max(n, 1)
    sent = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * size
    return Collective(kind, _axes(group, mesh), times, sent * times)


def _group(rest: str, mesh: dict[str, int]) -> list[int]:
    """One of its groups of devices, which stand in the mesh's order."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    if pairs:
        return [int(x) for x in pairs.groups()]
    if named := MESH_GROUPS.search(rest):
        sizes = {
            axis.split("=")[0]: int(axis.split("=")[1])
            for axis in named.group(1).split(",")
        }
        ids = _iota(named.group(3) or "", prod(sizes.values()))
        own = [axis.strip() for axis in named.group(2).split(",")]
        ids = ids.reshape(tuple(sizes.values()))
        rest_axes = [i for i, axis in enumerate(sizes) if axis not in own]
        ids = np.moveaxis(ids, rest_axes, range(len(rest_axes)))
        return ids.reshape(-1, prod(sizes[axis] for axis in own))[0].tolist()
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return _numbers(listed.group(1))
    if iota := re.search(r"replica_groups=(\[[^ ]*)", rest):
        shape = _numbers(iota.group(1)[1:].split("]")[0])
        return _iota(iota.group(1), prod(shape)).reshape(shape)[0].tolist()
    return list(range(prod(mesh.values())))


def _iota(said: str, count: int) -> np.ndarray:
    """Device ids of "[2,4]<=[8]", "[2,4]<=[4,2]T(1,0)", "([4,2]T(1,0))" or ""."""
    ids = np.arange(count)
    if found := IOTA.search(said):
        from_shape = found.group(2) or found.group(1)
        ids = ids.reshape(_numbers(from_shape))
        if found.group(3):
            ids = ids.transpose(_numbers(found.group(3)))
    return ids.reshape(-1)


def _axes(group: Sequence[int], mesh: dict[str, int]) -> str:
    """The axes along which the group's devices differ; "" for a group of one."""
    places = np.stack(np.unravel_index(np.array(group), tuple(mesh.values())))
    differ = (places != places[:, :1]).any(axis=1)
    return " x ".join(axis for axis, own in zip(mesh, differ, strict=True) if own)


def _called(line: Line) -> list[str]:
    found = CALLED.findall(line.rest)
    for branches in BRANCHES.findall(line.rest):
        found += [name.strip().lstrip("%") for name in branches.split(",")]
    return found


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",") if x]
