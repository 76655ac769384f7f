"""Which versions of Flax work with which of JAX; asked before Flax is imported.

Flax reaches into parts of JAX that are not public, and JAX moves them. A broken pair
fails with an AttributeError deep inside Flax; here it fails with its cure.
"""

import re
from importlib.metadata import version

# Flax below the second does not work with JAX from the first on: what JAX took away.
BROKEN = (
    ((0, 11, 1), (0, 12, 9), "hijax.MutableHiType"),
    ((0, 11, 2), (0, 12, 10), "hijax.HiPrimitive"),
)
OLDEST_JAX, OLDEST_FLAX = (0, 10, 2), (0, 12, 8)


def check(jax: str | None = None, flax: str | None = None) -> None:
    """Raises ImportError, one sentence, if these versions do not work together.

    The installed ones are asked about when not given.
    """
    jax = version("jax") if jax is None else jax
    flax = version("flax") if flax is None else flax
    if _numbers(jax) < OLDEST_JAX:
        raise ImportError(f"jaxkv needs jax>=0.10.2 and finds {jax}; upgrade jax.")
    if _numbers(flax) < OLDEST_FLAX:
        raise ImportError(f"jaxkv needs flax>=0.12.8 and finds {flax}; upgrade flax.")
    for from_jax, below_flax, gone in reversed(BROKEN):
        if _numbers(jax) >= from_jax and _numbers(flax) < below_flax:
            needed, older = _text(below_flax), _text(from_jax)
            raise ImportError(
                f"flax {flax} does not work with jax {jax}, which no longer has its "
                f"{gone}: pip install 'flax>={needed}' (or 'jax<{older}')."
            )


def _numbers(text: str) -> tuple[int, ...]:
    """(0, 12, 10) of "0.12.10.dev1"."""
    return tuple(int(n) for n in re.findall(r"\d+", re.split(r"[^\d.]", text)[0]))


def _text(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
