"""Tables of a plan for the terminal, and the same as plan.json."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxkv.heads import groups_note
from jaxkv.plan.programs import Program
from jaxkv.plan.serving import Serving
from jaxkv.plan.topologies import Topology
from jaxkv.plan.training import Training

GB = 1e9


def show_training(plan: Training, of: Topology, console: Console) -> None:
    """The step's tables, and what the run takes."""
    _program(plan.step, of, console)
    speed, days = plan.tokens_per_second(of.chip), plan.days(of.chip)
    if speed is not None and days is not None:
        used = speed * plan.needed_flops / plan.tokens / (of.chip.flops * of.chips)
        console.print(
            f"{plan.tokens:,} tokens a step, about {speed:,.0f} tokens/s "
            f"({used:.0%} of the slice's FLOP/s); {plan.steps} steps take about "
            f"{days:.2g} days.",
            highlight=False,
        )


def show_serving(plan: Serving, of: Topology, console: Console) -> None:
    """Both phases' tables, and what budgets of sharded heads mean."""
    _bytes(f"prefill, {plan.at_once} prompts at once", plan.prefill_bytes, of, console)
    for program in plan.prefill:
        _work(program, of, console)
    _program(plan.decode, of, console)
    prefill, speed = plan.prefill_seconds(of.chip), plan.tokens_per_second(of.chip)
    if prefill is not None and speed is not None:
        console.print(
            f"Prefill of {plan.batch} prompts takes about {prefill:.2g} s; decoding "
            f"gives about {speed:,.0f} tokens/s, {plan.batch / speed * 1e3:.3g} ms a "
            "step.",
            highlight=False,
        )
    if plan.groups > 1:
        console.print(groups_note(plan.groups), highlight=False)


def save(
    plan: Training | Serving, of: Topology, asked: Mapping[str, Any], out: Path
) -> None:
    """plan.json: what was asked, all figures, and the chip's."""
    figures: dict[str, Any] = {"asked": dict(asked), "topology": asdict(of)}
    figures |= asdict(plan) | {"tokens_per_second": plan.tokens_per_second(of.chip)}
    if isinstance(plan, Training):
        figures |= {
            "seconds": plan.step.seconds(of.chip),
            "days": plan.days(of.chip),
            "bytes": plan.step.total_bytes,
        }
    else:
        figures |= {
            "seconds": plan.decode.seconds(of.chip),
            "prefill_seconds": plan.prefill_seconds(of.chip),
            "bytes": plan.decode.total_bytes,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".part")
    beside.write_text(json.dumps(figures, indent=1) + "\n")
    os.replace(beside, out)


def _program(program: Program, of: Topology, console: Console) -> None:
    _bytes(program.name, program.bytes, of, console)
    _work(program, of, console)


def _bytes(name: str, kinds: Mapping[str, int], of: Topology, console: Console) -> None:
    table = Table(title=f"{name}: GB on a chip", title_justify="left")
    table.add_column("what")
    table.add_column("GB", justify="right")
    for kind, size in kinds.items():
        table.add_row(kind, f"{size / GB:.3f}")
    total = sum(kinds.values())
    fits = "fits" if total <= of.chip.memory else "[red]does not fit[/red]"
    table.add_section()
    table.add_row("together", f"{total / GB:.3f}")
    table.add_row(f"a chip of {of.name} has", f"{of.chip.memory / GB:.3f}")
    table.add_row("", fits)
    console.print(table)


def _work(program: Program, of: Topology, console: Console) -> None:
    table = Table(title=f"{program.name}: work of a chip", title_justify="left")
    for column in ("what", "how much", "at full speed"):
        table.add_column(column, justify="left" if column == "what" else "right")
    flops, chip = program.flops, of.chip
    table.add_row("products", f"{flops / 1e12:.3g} TFLOP", _time(flops / chip.flops))
    for one in program.collectives:
        if one.sent >= 1e3:
            what = f"{one.kind} over {one.axes}, {one.times} times"
            table.add_row(what, f"{one.sent / GB:.3g} GB", _time(one.sent / chip.links))
    table.add_section()
    if program.floor_seconds is not None:
        table.add_row("floor: the longest part", "", _time(program.floor_seconds))
    if program.xla_seconds is not None:
        table.add_row("XLA's estimate without kernels", "", _time(program.xla_seconds))
        kernels = program.kernel_seconds(chip)
        table.add_row("kernels, our estimate", "", _time(kernels))
    seconds = program.seconds(chip)
    if seconds is not None:
        table.add_row("a step, our estimate", "", _time(seconds))
    table.caption = f"compiled in {program.compile_seconds:.0f} s"
    console.print(table)


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
