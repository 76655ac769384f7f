"""The next token: greedy, and draws whose shares are those of the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.sample import Sample

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))
DRAWS = 4000
TOLERANCE = 4 * 0.5 / DRAWS**0.5  # four standard deviations of a share


def shares(sample, logits=LOGITS):
    """How often each token comes, over DRAWS keys."""
    keys = jax.random.split(jax.random.key(0), DRAWS)
    tiled = jnp.broadcast_to(jnp.asarray(logits), (DRAWS, len(logits)))
    tokens = np.asarray(jax.jit(sample)(tiled, keys))
    return np.bincount(tokens, minlength=len(logits)) / DRAWS


def share_of(kept, temperature=1.0):
    p = np.where(kept, np.exp(LOGITS / temperature), 0.0)
    return p / p.sum()


def test_greedy_takes_the_largest_and_the_first_of_equals():
    logits = jnp.array([[0.0, 3.0, 1.0], [2.0, 2.0, -1.0]])
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(Sample()(logits, keys), [1, 0])


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (Sample(temperature=1.0), share_of([1, 1, 1, 1, 1])),
        (Sample(temperature=0.5), share_of([1, 1, 1, 1, 1], 0.5)),
        (Sample(temperature=1.0, top_k=2), share_of([0, 1, 0, 1, 0])),
        (Sample(temperature=1.0, top_k=9), share_of([1, 1, 1, 1, 1])),
        # 0.4 + 0.25 reach 0.6; one token alone reaches 0.3.
        (Sample(temperature=1.0, top_p=0.6), share_of([0, 1, 0, 1, 0])),
        (Sample(temperature=1.0, top_p=0.3), share_of([0, 1, 0, 0, 0])),
        (Sample(temperature=1.0, top_k=3, top_p=0.7), share_of([0, 1, 0, 1, 0])),
    ],
    ids=lambda case: repr(case) if isinstance(case, Sample) else "",
)
def test_shares(sample, expected):
    found = shares(sample)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert (found[expected == 0] == 0).all()


def test_a_row_draws_from_its_own_key():
    sample = Sample(temperature=2.0)
    logits = jax.random.normal(jax.random.key(1), (6, 32))
    keys = jax.random.split(jax.random.key(2), 6)
    batch = sample(logits, keys)
    for i in range(6):
        assert sample(logits[i : i + 1], keys[i : i + 1])[0] == batch[i]
    other = sample(logits[::-1], keys[::-1])
    np.testing.assert_array_equal(other, batch[::-1])


def test_half_precision_logits_are_sampled_in_fp32():
    found = shares(Sample(temperature=1.0), LOGITS.astype(jnp.bfloat16))
    np.testing.assert_allclose(found, share_of([1] * 5), atol=TOLERANCE + 0.01)


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-0.1),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
    ],
    ids=str,
)
def test_bad_settings_are_one_sentence(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}=") as error:
        Sample(**bad)
    assert "\n" not in str(error.value)
