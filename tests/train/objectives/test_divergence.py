"""The divergence is its formula; 0 of a model from itself; of the likeliest words."""

import jax
import numpy as np
import pytest

from jaxkv.train.objectives import Divergence
from tests.train.objectives.given import B, T, V, gave


def formula(given, temperature, top):
    p_BTV, q_BTV = (
        np.asarray(f.hidden @ f.table.T, np.float64) / temperature
        for f in (given.teacher, given.student)
    )
    if top is not None:
        last = np.sort(p_BTV, axis=-1)[..., -top][..., None]
        p_BTV = np.where(p_BTV >= last, p_BTV, -np.inf)
    p_BTV = np.exp(p_BTV) / np.exp(p_BTV).sum(axis=-1, keepdims=True)
    log_q_BTV = q_BTV - np.log(np.exp(q_BTV).sum(axis=-1, keepdims=True))
    log_p_BTV = np.log(np.where(p_BTV > 0, p_BTV, 1.0))
    apart_BT = (p_BTV * (log_p_BTV - log_q_BTV)).sum(axis=-1)
    return temperature**2 * (apart_BT * given.weight).sum()


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize(("temperature", "top"), [(1.0, None), (2.0, 5), (0.5, 99)])
def test_it_is_the_formula(temperature, top, chunks):
    given, size = gave(), B * T * V * 4 // chunks
    found = Divergence(temperature, top, logits_bytes=size)(given).sum
    theirs = formula(given, temperature, None if top == 99 else top)
    np.testing.assert_allclose(found, theirs, rtol=1e-4)


def test_a_model_does_not_differ_from_itself():
    for objective in (Divergence(), Divergence(2.0)):
        np.testing.assert_allclose(objective(gave(0, 0)).sum, 0, atol=1e-6)


def test_its_gradient_is_that_of_the_students_words_alone():
    given = gave()

    def value(hidden, teachers):
        student = given.student._replace(hidden=hidden)
        teacher = given.teacher._replace(hidden=teachers)
        both = given._replace(student=student, teacher=teacher)
        return Divergence(top=4)(both).sum

    slope = jax.grad(value, argnums=(0, 1))(given.student.hidden, given.teacher.hidden)
    assert np.isfinite(slope[0]).all() and np.abs(slope[0]).max() > 0
    np.testing.assert_array_equal(slope[1], 0)


def test_it_is_checked():
    for change in ({"temperature": 0.0}, {"top": 0}, {"logits_bytes": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            Divergence(**change)
