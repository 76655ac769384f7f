"""The TPU generations that programs are compiled for, and the slice of each."""

from dataclasses import dataclass

STEP = "llama-3.1-8b decode"

# The step's layers are alike and unrolled: a few show what all would, and compile in a
# share of the time. What depends on their number is counted for the whole model.
LAYERS = 4


@dataclass(frozen=True)
class Generation:
    """A small slice, by libtpu's name for it, as a mesh of `data` by `tensor` chips.

    chip: how a chip's cores show themselves, where that is a choice.
    """

    topology: str
    data: int
    tensor: int
    memory: int  # bytes of one chip
    chip: str = "default"


GENERATIONS = {
    "v4": Generation("v4:2x2x1", 2, 2, memory=32 * 10**9, chip="megacore"),
    "v5e": Generation("v5e:2x4", 1, 8, memory=16 * 10**9),
    "v5p": Generation("v5p:2x2x1", 4, 1, memory=95 * 10**9),
    "v6e": Generation("v6e:2x4", 2, 4, memory=32 * 10**9),
}
