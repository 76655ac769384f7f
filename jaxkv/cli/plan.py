"""`jaxkv plan`: what training or serving takes on a TPU slice, without a TPU."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from jaxkv.cli.arguments import parse


@dataclass(frozen=True)
class Plan:
    """Compiles a run for a TPU slice on this machine, and tells what it would take.

    Bytes of a chip by kind, FLOPs, bytes of collectives by the mesh's axes, and an
    estimate of the time. No weight is made, and no TPU is needed: libtpu compiles
    (pip install 'jaxkv[tpu]'). Whole models take minutes.

    Example: jaxkv plan --train distil_llama_3_1_8b --topology v5e:16x16

    Example: jaxkv plan --model llama-3.1-8b --context 131072 --batch 8 --method adakv
    --keep 0.1 --topology v5e:2x4
    """

    topology: str = "v5e:16x16"
    """a slice: v4, v5e, v5p or v6e, and its grid, as v5e:2x4 or v5p:4x4x4"""
    train: str | None = None
    """a run of `jaxkv train` whose step to plan; or a .py file"""
    micro: int | None = None
    """with --train: parts of a step's rows, instead of the run's"""
    model: str | None = None
    """a preset or folder whose prefill and decode step to plan"""
    context: int = 131072
    """with --model: tokens of the prompts"""
    batch: int = 8
    """with --model: prompts at once"""
    method: str = "adakv"
    """with --model: a row of `jaxkv methods`"""
    keep: float = 0.1
    """with --model: the share of the prompt that it keeps"""
    mesh: str | None = None
    """data=2,fsdp=4,tensor=2, whose product is the number of chips; or auto"""
    out: Path | None = None
    """a file to write all figures to, as plan.json"""


def main(arguments: list[str]) -> int:
    """The command; raises ValueError for bad input."""
    options = parse(Plan, arguments, "plan")
    if (options.train is None) == (options.model is None):
        raise ValueError("Give either --train or --model, and not both.")
    if options.micro is not None and options.train is None:
        raise ValueError("--micro is of --train; a --model has none.")
    if options.batch < 1 or options.context < 1 or (options.micro or 1) < 1:
        raise ValueError("--batch, --context and --micro are 1 at least.")
    from rich.console import Console

    from jaxkv.plan.show import save, show_serving, show_training
    from jaxkv.plan.topologies import topology

    of = topology(options.topology)
    console = Console()
    console.print(f"{of.name}: {of.chips} chips", highlight=False)
    if options.train is not None:
        plan = _training(options, of)
        show_training(plan, of, console)
    else:
        plan = _serving(options, of)
        show_serving(plan, of, console)
    if options.out is not None:
        asked = {
            name: str(x) if isinstance(x, Path) else x
            for name, x in asdict(options).items()
        }
        save(plan, of, asked, options.out)
        console.print(f"Written: {options.out}", highlight=False)
    return 0


def _training(options: Plan, of):
    from jaxkv.plan.training import plan_training
    from jaxkv.train.config import load

    config = load(options.train or "")
    if options.mesh is not None:
        config = replace(config, mesh=options.mesh)
    if options.micro is not None:
        config = replace(config, micro=options.micro)
    with _waiting(f"compiling a step of {options.train}"):
        return plan_training(config, _devices(of), of.chip)


def _serving(options: Plan, of):
    from jaxkv.method import method
    from jaxkv.models.load import config_of
    from jaxkv.plan.serving import plan_serving

    row = method(options.method, keep=options.keep)
    model = config_of(options.model or "")
    mesh = options.mesh or "auto"
    with _waiting(f"compiling prefill and a decode step of {options.model}"):
        return plan_serving(
            model, row, options.context, options.batch, mesh, _devices(of), of.chip
        )


def _devices(of):
    import jax

    from jaxkv.plan.topologies import devices

    jax.config.update("jax_platforms", "cpu")  # libtpu would look for a TPU here
    return devices(of)


def _waiting(what: str):
    """A line with the time that has passed, on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(stderr=True)
    line = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    )
    line.add_task(what, total=None)
    return line
