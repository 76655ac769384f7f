"""The demo model can do what the tasks ask, and repeat what it has read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkv
from jaxkv.evaluate.language import repeat
from jaxkv.evaluate.tasks import IN_MEAN, held_out, task

LENGTH = 320


@pytest.fixture(scope="module")
def foretold():
    """How much of each continuation of a prompt the demo foretells, word by word."""
    model, tokenizer = jaxkv.load("demo")
    likeliest = jax.jit(lambda model, ids: jnp.argmax(model(ids), axis=-1))

    def shares(prompts):
        pairs = [
            (tokenizer.encode(prompt).ids, tokenizer.encode(then).ids[1:])
            for prompt, then in prompts
        ]
        ids = np.zeros((len(pairs), 640), np.int32)
        for row, (first, then) in zip(ids, pairs, strict=True):
            row[: len(first) + len(then)] = first + then
        said = np.asarray(likeliest(model, jnp.asarray(ids)))
        return [
            float((row[len(a) - 1 : len(a) + len(b) - 1] == b).mean())
            for row, (a, b) in zip(said, pairs, strict=True)
        ]

    return tokenizer, shares


def test_answers_of_every_task(foretold):
    tokenizer, shares = foretold
    prompts = []
    for name in IN_MEAN:
        # The order of common words is free, so their ideal answer is one of many.
        if not name.startswith("common"):
            sample = task(name)(tokenizer, LENGTH, np.random.default_rng(0))
            question = sample.questions[0]
            prompts.append((f"{sample.context} {question.text}", question.answer))
    found = shares(prompts)
    assert np.mean([share == 1 for share in found]) > 0.9


def test_repeats_its_context_from_the_start_and_from_the_middle(foretold):
    tokenizer, shares = foretold
    context, _ = held_out(tokenizer, LENGTH, np.random.default_rng(0))
    words = context.split()
    middle = len(words) // 2
    before, after = " ".join(words[middle - 8 : middle]), " ".join(words[middle:])
    start, later = shares(
        [
            (f"{context} {repeat()}", context),
            (f"{context} {repeat()} {before}", after),
        ]
    )
    assert start > 0.95 and later > 0.95


def test_far_context_foretells_the_continuation(foretold):
    tokenizer, shares = foretold
    context, continuation = held_out(tokenizer, 512, np.random.default_rng(1))
    near = " ".join(context.split()[-len(context.split()) // 4 :])
    whole, recent = shares([(context, continuation), (near, continuation)])
    assert whole > recent + 0.2
