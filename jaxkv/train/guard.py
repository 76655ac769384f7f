"""The guard: a step whose loss is no number, or far above the others, changes nothing.

What it remembers is a part of the run's state, so that nothing waits for the device:

    recent   the last losses that were taken, fp32; no number where there is none yet
    broken   the number of the step that broke the run, or -1

A broken run's state stays what it was before that step, until the log, which reads the
losses, tells.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FEWEST = 8  # losses of which a median says anything
Memory = dict[str, Array]


@dataclass(frozen=True)
class Guard:
    """What counts as a spike, and what is done about it.

    Attributes:
      factor: a loss above so many times the median of the last ones is a spike.
      window: how many those are, at most; a stage begins with none.
      spikes: skip the update and go on, stop the run, or take them as they are. A loss
        or a gradient that is not a number always stops it.
    """

    factor: float = 10.0
    window: int = 64
    spikes: Literal["skip", "stop", "take"] = "skip"

    def __post_init__(self) -> None:
        if not self.factor > 1 or self.window < FEWEST:
            raise ValueError(
                f"guard.factor={self.factor} and guard.window={self.window}; give a "
                f"factor above 1 and a window of {FEWEST} at least."
            )

    def memory(self) -> Memory:
        """As it is before the first step."""
        return {
            "recent": jnp.full(self.window, jnp.nan, jnp.float32),
            "broken": jnp.int32(-1),
        }

    def __call__(
        self,
        memory: Memory,
        number: Int[Array, ""],
        first: int,
        loss: Float[Array, ""],
        norm: Float[Array, ""],
    ) -> tuple[Memory, Bool[Array, ""], dict[str, Float[Array, " 2"]]]:
        """(what it remembers, whether to take the step, counts).

        first: the number of the stage's first step. norm: the gradient's.
        """
        recent_X = jnp.where(number == first, jnp.nan, memory["recent"])
        enough = jnp.isfinite(recent_X).sum() >= FEWEST
        # Not before there are enough: the median of nothing is no number.
        spike = enough & (loss > self.factor * jnp.nanmedian(recent_X))
        spike = spike & (self.spikes != "take")
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        breaks = ~finite | (spike & (self.spikes == "stop"))
        whole = memory["broken"] < 0
        broken = jnp.where(whole & breaks, number, memory["broken"]).astype(jnp.int32)
        taken = whole & finite & ~spike
        place_X = jnp.arange(self.window) == number % self.window
        recent_X = jnp.where(place_X & taken, loss, recent_X)
        skipped = jnp.stack([(whole & finite & spike).astype(jnp.float32), 1.0])
        counts = {
            "skipped": skipped,
            "broken": jnp.stack([broken.astype(jnp.float32), 1.0]),
        }
        return {"recent": recent_X, "broken": broken}, taken, counts

    def sentence(self, number: int, loss: float) -> str:
        """What is said of the step that broke a run."""
        if loss == loss and abs(loss) != float("inf"):
            what = f"The loss of step {number} is {loss:.6g}, a number"
            if self.spikes == "stop":
                what = (
                    f"The loss of step {number} is {loss:.6g}, over {self.factor:g} "
                    "times its running median"
                )
            else:
                what = f"The gradient of step {number} is not a number"
        else:
            what = f"The loss of step {number} is {loss}"
        return (
            f"{what}; the run stopped before it. Lower the learning rate, or look at "
            "that step's data, and run the same command with another --out."
        )
