"""RoPE's angular frequencies, and how a longer context stretches them.

frequency_i = theta^(-2 i / size),  i < size / 2, in radians a token
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretched rotary frequencies (`rope_type: llama3`).

    A frequency whose wavelength is below `original / high_freq_factor` stays, one above
    `original / low_freq_factor` is divided by `factor`, those between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def stretched(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """The frequencies [size/2] of `inverse_frequencies`, stretched."""
        wavelength = 2 * math.pi / frequency
        low, high = self.low_freq_factor, self.high_freq_factor
        smooth = (self.original_max_position / wavelength - low) / (high - low)
        smooth = np.clip(smooth, 0.0, 1.0)
        return frequency * (smooth + (1 - smooth) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071), as DeepSeek uses it.

    Pairs that turn more than `beta_fast` times in the original context stay, those that
    turn less than `beta_slow` times are divided by `factor`, those between are blended.
    With m(s) = 0.1 s ln(factor) + 1 (1 for a factor of 1 or less), the softmax's scale
    is multiplied by m(mscale_all_dim)^2, and the rotated part of a logit by
    (m(mscale) / m(mscale_all_dim))^2. Where one of the two is 0 the latter is m(1)^2.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def stretched(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        """The frequencies [size/2] of `inverse_frequencies`, stretched."""
        pairs = len(frequency)

        def pair_of(turns: float) -> float:
            """The pair that turns so often in the original context."""
            wavelength = self.original_max_position / turns
            return pairs * math.log(wavelength / (2 * math.pi)) / math.log(theta)

        first = max(math.floor(pair_of(self.beta_fast)), 0)
        last = min(math.ceil(pair_of(self.beta_slow)), 2 * pairs - 1)
        width = last - first if last != first else 0.001
        slow = np.clip((np.arange(pairs) - first) / width, 0.0, 1.0)
        return frequency * (1 - slow + slow / self.factor)

    @property
    def of_softmax(self) -> float:
        """What all of a logit is multiplied by."""
        return self._magnitude(self.mscale_all_dim) ** 2 if self.mscale_all_dim else 1.0

    @property
    def of_rotated(self) -> float:
        """What the rotated part of a logit is multiplied by besides."""
        if not (self.mscale and self.mscale_all_dim):
            return self._magnitude(1.0) ** 2
        of_all = self._magnitude(self.mscale_all_dim)
        return (self._magnitude(self.mscale) / of_all) ** 2

    def _magnitude(self, share: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * share * math.log(self.factor) + 1.0


AnyScaling = RopeScaling | Yarn


def inverse_frequencies(
    size: int, theta: float, scaling: AnyScaling | None = None
) -> np.ndarray:
    """[size/2] in fp32, of `size` numbers that are rotated in pairs."""
    exponent = np.arange(0, size, 2, dtype=np.float64) / size
    frequency = 1.0 / theta**exponent
    if scaling is not None:
        frequency = scaling.stretched(frequency, theta)
    return frequency.astype(np.float32)
