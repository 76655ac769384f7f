"""Cross-entropy is its formula, in chunks too, and so is its gradient."""

import jax
import numpy as np
import pytest

from jaxkv.train.objectives import CrossEntropy
from tests.train.objectives.given import B, T, V, gave


def value(hidden, table, chunks=1):
    given, size = gave(), B * T * V * 4 // chunks
    student = given.student._replace(hidden=hidden, table=table)
    return CrossEntropy(logits_bytes=size)(given._replace(student=student)).sum


def formula(hidden, table):
    given = gave()
    log_p_BTV = jax.nn.log_softmax(hidden @ table.T)
    picked = np.arange(B)[:, None], np.arange(T)[None], np.asarray(given.target)
    return -(log_p_BTV[picked] * given.weight).sum()


@pytest.mark.parametrize("chunks", [1, 4])
def test_it_is_the_formula_and_its_gradient(chunks):
    student = gave().student
    arguments = student.hidden, student.table
    ours = jax.value_and_grad(value, argnums=(0, 1))(*arguments, chunks)
    theirs = jax.value_and_grad(formula, argnums=(0, 1))(*arguments)
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-6)
