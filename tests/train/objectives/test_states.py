"""Squared errors of hidden states, attention outputs and rebuilt entries; penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkv.train.objectives import (
    AttentionOutputs,
    HiddenStates,
    KeptAbove,
    MeanKept,
    Reconstruction,
)
from tests.train.objectives.given import gave


def squares(ours, theirs, weight):
    """Weighted mean over tokens of the mean square over all else, by hand."""
    apart = np.square(np.asarray(ours) - np.asarray(theirs)).mean(axis=-1)
    return (apart * np.asarray(weight)).sum(axis=(-2, -1)).mean()


def test_hidden_states():
    given = gave()
    student, teacher, weight = given.student, given.teacher, given.weight
    found = HiddenStates()(given).sum
    theirs = squares(student.layers, teacher.layers, weight)
    np.testing.assert_allclose(found, theirs, rtol=1e-5)
    last = squares(student.hidden, teacher.hidden, weight)
    np.testing.assert_allclose(HiddenStates("last")(given).sum, last, rtol=1e-5)


def test_attention_outputs():
    given = gave()
    ours, theirs = given.student.attended.output, given.teacher.attended.output
    found = AttentionOutputs()(given).sum
    np.testing.assert_allclose(found, squares(ours, theirs, given.weight), rtol=1e-5)


def test_reconstruction_moves_what_is_rebuilt_alone():
    given = gave()
    found = given.student.attended

    def value(entries, rebuilt):
        attended = found._replace(entries=entries, rebuilt=rebuilt)
        student = given.student._replace(attended=attended)
        return Reconstruction()(given._replace(student=student)).sum

    ours = value(found.entries, found.rebuilt)
    theirs = squares(found.rebuilt[0], found.entries[0], given.weight)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    slope = jax.grad(value, argnums=(0, 1))(found.entries, found.rebuilt)
    np.testing.assert_array_equal(slope[0][0], 0)
    assert np.abs(slope[1][0]).max() > 0


def test_penalties_are_of_what_is_kept():
    gates = jnp.array([[0.2, 0.6], [1.0, 0.2]])
    given = gave(kept=gates)
    np.testing.assert_allclose(MeanKept()(given).sum, 0.5, rtol=1e-5)
    np.testing.assert_allclose(KeptAbove(0.2)(given).sum, 0.3, rtol=1e-5)
    assert KeptAbove(0.6)(given).sum == 0
    half = given._replace(weight=given.weight / 2)  # one of two micro-batches
    np.testing.assert_allclose(MeanKept()(half).sum, 0.25, rtol=1e-5)


def test_what_a_run_has_not_is_told():
    bare = gave()
    for objective in (MeanKept(), KeptAbove()):
        with pytest.raises(ValueError, match="this run has none"):
            objective(bare)
    nothing = bare.student.attended._replace(entries=None, rebuilt=None)
    student = bare.student._replace(attended=nothing)
    with pytest.raises(ValueError, match="no add-on of this run has one"):
        Reconstruction()(bare._replace(student=student))
