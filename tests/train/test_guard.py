"""Losses that are no numbers stop a run, spikes are skipped; the state stays whole."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.train.guard import FEWEST, Guard


def told(guard, losses, norms=None):
    """(which steps were taken, the step that broke the run) of losses one by one."""
    memory, taken = guard.memory(), []
    judge = jax.jit(
        lambda memory, number, loss, norm: guard(memory, number, 0, loss, norm)
    )
    for number, loss in enumerate(losses):
        norm = 1.0 if norms is None else norms[number]
        memory, takes, counts = judge(
            memory, np.int32(number), np.float32(loss), np.float32(norm)
        )
        taken.append(bool(takes))
    return taken, int(memory["broken"])


def test_a_spike_is_skipped_and_forgotten():
    steady = [1.0] * FEWEST
    taken, broken = told(Guard(factor=3.0), [*steady, 4.0, 2.0, 4.0, 1.0])
    assert taken == [True] * FEWEST + [False, True, False, True] and broken == -1


def test_first_losses_are_no_spikes():
    taken, _ = told(Guard(factor=3.0), [1.0, 9.0, 90.0])
    assert taken == [True] * 3


def test_a_spike_stops_if_it_is_to():
    losses = [1.0] * FEWEST + [4.0, 1.0]
    taken, broken = told(Guard(factor=3.0, spikes="stop"), losses)
    assert taken == [True] * FEWEST + [False, False] and broken == FEWEST
    taken, broken = told(Guard(factor=3.0, spikes="take"), losses)
    assert taken == [True] * len(losses) and broken == -1


@pytest.mark.parametrize("spikes", ["skip", "stop", "take"])
def test_what_is_no_number_always_stops(spikes):
    taken, broken = told(Guard(spikes=spikes), [1.0, 1.0, np.nan, 1.0])
    assert taken == [True, True, False, False] and broken == 2
    taken, broken = told(Guard(spikes=spikes), [1.0] * 3, norms=[1.0, np.inf, 1.0])
    assert taken == [True, False, False] and broken == 1


def test_a_stage_begins_anew():
    guard = Guard(factor=3.0)
    memory = {"recent": jnp.ones(guard.window), "broken": jnp.int32(-1)}
    five, one = jnp.float32(5), jnp.float32(1)
    assert not guard(memory, jnp.int32(7), 0, five, one)[1]
    assert guard(memory, jnp.int32(7), 7, five, one)[1]


def test_a_sentence_names_the_step():
    guard = Guard(spikes="stop")
    assert "loss of step 7 is nan" in guard.sentence(7, float("nan"))
    assert "loss of step 7 is 50, over 10 times" in guard.sentence(7, 50.0)
    assert "gradient of step 7 is not a number" in Guard().sentence(7, 1.0)


def test_it_is_checked():
    for change in ({"factor": 1.0}, {"window": 2}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(Guard(), **change)
