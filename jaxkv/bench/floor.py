"""The least time that bytes and products can take on this device."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxkv.bench.timing import median_seconds


@dataclass(frozen=True)
class Speed:
    """What the device reaches at best: bytes read a second, products' FLOP a second."""

    read: float
    multiply: float

    def floor(self, read: int, flops: int = 0) -> float:
        """Seconds: the larger of the bytes' and the products'."""
        return max(read / self.read, flops / self.multiply)


# The best that any kernel was measured at; the datasheet of an H200 says 4.8e12 bytes.
KNOWN = {"NVIDIA H200": Speed(4.46e12, 723e12)}


def speed() -> Speed:
    """Of this device: known, or that of XLA's own sum and product."""
    known = KNOWN.get(jax.devices()[0].device_kind)
    return known or Speed(_read(), _multiply())


def _read() -> float:
    cpu = jax.default_backend() == "cpu"
    x = jnp.ones((1 << (26 if cpu else 30),), jnp.bfloat16)
    total = jax.jit(lambda x: x.astype(jnp.float32).sum())
    return x.nbytes / median_seconds(lambda: total(x))


def _multiply() -> float:
    n = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((n, n), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    return 2 * n**3 / median_seconds(lambda: product(x))
