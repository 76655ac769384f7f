"""The printed table: what it holds, and where it leaves things out."""

from dataclasses import replace

from rich.console import Console

from jaxkv.evaluate.show import print_table
from jaxkv.evaluate.table import Row, Table
from tests.evaluate.made import made_table

FULL = Row(
    method="full",
    keep=1.0,
    question="aware",
    n=8,
    tasks={"single_needle": 1.0},
    score=1.0,
    cache_bytes=4096.0,
    full_cache_bytes=4096.0,
    decode_step_s=0.002,
)
HALF = Row(
    method="random",
    keep=0.5,
    question="aware",
    n=8,
    tasks={"single_needle": 0.25},
    score=0.25,
    ci95=(0.125, 0.375),
    difference=-0.75,
    difference_ci95=(-0.875, -0.625),
    cache_bytes=2048.0,
    full_cache_bytes=4096.0,
    decode_step_s=0.001,
)
OUT = Row(method="snapkv", keep=0.1, question="aware", n=0, note="holds 32 slots")


def test_many_tasks_become_two_means():
    rows = made_table(contexts=(64,)).rows
    tasks = {f"task_{i}": 0.5 for i in range(7)}
    rows = tuple(replace(row, tasks=tasks) for row in rows)
    console = Console(width=160)
    with console.capture() as said:
        print_table(replace(made_table(), rows=rows), console)
    assert "sparse dense" in said.get() and "perplexity" in said.get()
    assert "task" not in said.get()


def test_rows_and_what_is_missing():
    table = Table(
        rows=(FULL, HALF, OUT),
        answers=(),
        model="demo",
        context=256,
        samples=4,
        batch=4,
        seed=0,
        device="cpu",
        dtype="float32",
        version="0",
        command="",
    )
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as said:
        print_table(table, console)
    lines = said.get().splitlines()
    (half,) = [line for line in lines if line.split()[:1] == ["random"]]
    assert "0.250 ±0.125 -0.750 [-0.875, -0.625]" in half and "50.0 %" in half
    assert any("snapkv at 0.1: holds 32 slots" in line for line in lines)
    assert any(line.split() == ["snapkv", "0.1", "n/a"] for line in lines)
