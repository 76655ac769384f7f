"""`jaxkv train`: trains a model, or a part or an add-on of one, or goes on."""

from pathlib import Path

from jaxkv.cli.arguments import keep_programs, parse
from jaxkv.cli.fields import options_of, with_options
from jaxkv.train.config import Train, known, load
from jaxkv.train.loop import train as run

HELP = """\
usage: jaxkv train NAME|FILE [--out DIR] [--FIELD VALUE ...]

Trains the run NAME of jaxkv.configs.train, or TRAIN of a .py FILE, into DIR
(runs/NAME): checkpoints/, log.jsonl, curve.png, train.json and what was trained, a
Hugging Face folder model/ or an add-on such as gates-HASH.safetensors. The same command
goes on where a run stopped, also on another mesh.

  --out DIR          where to write
  --mesh AXES        data=2,fsdp=4 (the product is the number of devices; also tensor),
                     or auto: all on fsdp
  --FIELD VALUE      another value for a field of the config, also --model.width 128;
                     --minutes 9 stops after that time, to be gone on with later

  jaxkv train NAME --help lists the fields of a run.

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
    out = Path("runs") / Path(name).stem
    if "--out" in overrides:
        at = overrides.index("--out")
        if at + 1 == len(overrides):
            raise ValueError("--out needs a folder.")
        out = Path(overrides[at + 1])
        del overrides[at : at + 2]
    config = override(load(name), overrides, name)
    keep_programs()
    run(config, out)
    return 0
