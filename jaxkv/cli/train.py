"""`jaxkv train`: trains a model, or gates of one, from a config; or goes on."""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import tyro

from jaxkv.train.config import Train, known, load
from jaxkv.train.loop import train as run

HELP = """\
usage: jaxkv train NAME|FILE [--out DIR] [--FIELD VALUE ...]

Trains the run NAME of jaxkv.configs.train, or TRAIN of a .py FILE, into DIR
(runs/NAME): checkpoints/, log.jsonl, curve.png, train.json and model/, a Hugging Face
folder; or, for a run of gates, gates-HASH.safetensors instead of a model. The same
command goes on where a run stopped.

  --out DIR          where to write
  --FIELD VALUE      another value for a field of the config, also --model.width 128;
                     --minutes 9 stops after that time, to be gone on with later

example: jaxkv train demo --out runs/demo --seed 1
names:   {names}
"""


def train(name_or_file: str, overrides: list[str], out: Path) -> dict[str, float | int]:
    """Trains the named run with some fields changed; returns its last metrics.

    Args:
      overrides: `["--seed", "1", "--model.width", "128"]`.

    Raises:
      ValueError: no such run, no such field, a value of the wrong type, or `out` holds
        a run of another config.
    """
    return run(override(load(name_or_file), overrides), out)


def override(config: Train, overrides: list[str]) -> Train:
    """`config` with the fields that `overrides` name set to their values.

    Raises:
      ValueError: no such field, or a value of the wrong type.
    """
    if not overrides:
        return config
    try:
        # tyro explains itself in a box of many lines; the one line below says the same.
        with redirect_stderr(StringIO()):
            return tyro.cli(
                Train,
                default=config,
                args=overrides,
                add_help=False,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit:
        given = " ".join(overrides)
        raise ValueError(f"A run has no such field or value: {given}.") from None


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP.format(names=", ".join(known())))
        return 0 if arguments else 2
    name, *overrides = arguments
    out = Path("runs") / Path(name).stem
    if "--out" in overrides:
        at = overrides.index("--out")
        if at + 1 == len(overrides):
            raise ValueError("--out needs a folder.")
        out = Path(overrides[at + 1])
        del overrides[at : at + 2]
    train(name, overrides, out)
    return 0
