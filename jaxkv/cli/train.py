"""`jaxkv train`: trains a model, or a part or an add-on of one, or goes on."""

import logging
from pathlib import Path

from jaxkv.cli.arguments import keep_programs, parse
from jaxkv.cli.fields import options_of, with_options
from jaxkv.train import hosts
from jaxkv.train.config import Train, known, load
from jaxkv.train.loop import train as run

HELP = """\
usage: jaxkv train NAME|FILE [--out DIR] [--FIELD VALUE ...]

Trains the run NAME of jaxkv.configs.train, or TRAIN of a .py FILE, into DIR
(runs/NAME): checkpoints/, log.jsonl, curve.png, train.json and what was trained, a
Hugging Face folder model/ or an add-on such as gates-HASH.safetensors. The same command
goes on where a run stopped, also on another mesh.

  --out DIR          where to write; among several hosts, a folder that all reach
  --mesh AXES        data=2,fsdp=4 (the product is the number of devices; also tensor),
                     or auto: all on fsdp
  --FIELD VALUE      another value for a field of the config, also --model.width 128;
                     --minutes 9 stops after that time, to be gone on with later

  --coordinator HOST:PORT --processes N --process I
                     in each of N processes that train together: where process 0 is
                     reached, and which this is; found out by itself on a TPU pod and
                     under SLURM, Open MPI and Kubernetes (--processes 1: run alone)

  jaxkv train NAME --help lists the fields of a run. SIGTERM saves and ends with code
  143, a run that fails with code 1; docs/many_hosts.md has a line for each launcher.

example: jaxkv train demo --out runs/demo --seed 1
example: jaxkv train demo --mesh data=2,fsdp=2,tensor=2 --micro 2 --remat full
example: jaxkv train distil_demo --objectives.0.temperature 2 --steps 100
names:   {names}
"""


def override(config: Train, overrides: list[str], name: str = "NAME") -> Train:
    """`config` with the fields that `overrides` name set to their values.

    Raises:
      ValueError: no such field, or a value of the wrong type.
    """
    if not overrides:
        return config
    return with_options(config, parse(options_of(config), overrides, f"train {name}"))


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(names=", ".join(known())))
        return 0 if arguments else 2
    name, *overrides = arguments
    out = Path(_taken(overrides, "--out", "a folder") or Path("runs") / Path(name).stem)
    coordinator = _taken(overrides, "--coordinator", "HOST:PORT")
    processes, process = (
        _number(_taken(overrides, flag, "a number"), flag)
        for flag in ("--processes", "--process")
    )
    config = override(load(name), overrides, name)
    hosts.join(coordinator, processes, process)
    keep_programs()
    # Orbax logs the trace of an error that is raised too, and told in one line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    with hosts.together():
        run(config, out)
    return 0


def _taken(arguments: list[str], flag: str, what: str) -> str | None:
    """The value of a flag, which is removed from the arguments."""
    if flag not in arguments:
        return None
    at = arguments.index(flag)
    if at + 1 == len(arguments):
        raise ValueError(f"{flag} needs {what}.")
    _, value = arguments[at : at + 2]
    del arguments[at : at + 2]
    return value


def _number(word: str | None, flag: str) -> int | None:
    if word is not None and not word.isdecimal():
        raise ValueError(f"{flag} {word}: give a whole number.")
    return None if word is None else int(word)
