"""What ships inside the package: the demo, and models of it that know what it knows."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxkv
from jaxkv.convert.matryoshka import MatryoshkaKV
from jaxkv.evaluate.tasks import TASKS
from jaxkv.models.find import demo_folder, shipped

MOST = 64 * 2**20  # bytes of all assets


def test_all_of_it_is_small():
    files = [path for path in demo_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST


def test_every_one_reads_the_demo_s_words():
    demo, words = jaxkv.load("demo")
    assert set(shipped()) >= {"demo", "demo-mla", "demo-matryoshka"}
    for name in shipped():
        model, tokenizer = jaxkv.load(name)
        assert tokenizer is not None and words is not None
        assert tokenizer.to_str() == words.to_str()
        assert model.config.repeat_tokens == demo.config.repeat_tokens
        assert model.config.vocabulary == demo.config.vocabulary


def test_the_bases_answer_at_any_rank():
    """Whole the demo's next words; at 50 and 25 % of the bytes the same answers."""
    demo, tokenizer = jaxkv.load("demo")
    whole, _ = jaxkv.load("demo-matryoshka")
    sample = TASKS["multi_key"](tokenizer, 300, np.random.default_rng(0))
    asked = sample.questions[0]
    ids = tokenizer.encode(f"{sample.context} {asked.text} {asked.references[0]}").ids
    answer = len(tokenizer.encode(asked.references[0], add_special_tokens=False).ids)
    right, ours = (
        jax.nn.log_softmax(model(jnp.asarray([ids]))[0]) for model in (demo, whole)
    )
    divergence = (jnp.exp(right) * (right - ours)).sum(axis=-1)
    assert divergence.mean() < 0.05  # nats
    last = slice(-answer - 1, -1)  # what predicts the answer's words
    half, quarter = (
        MatryoshkaKV(keep_bytes=share, search=False, key_share=0.62)(whole)
        for share in (0.5, 0.25)
    )
    for model, entry in ((demo, 512), (whole, 512), (half, 256), (quarter, 128)):
        best = model(jnp.asarray([ids]))[0].argmax(-1)
        assert best[last].tolist() == ids[-answer:]
        assert model.config.entry_numbers(0) == entry


def test_the_latents_are_small_and_answer():
    demo, tokenizer = jaxkv.load("demo")
    model, _ = jaxkv.load("demo-mla")
    assert all(s.entry == 80 for s in model.config.attention)
    sample = TASKS["single_needle"](tokenizer, 300, np.random.default_rng(0))
    context = tokenizer.encode(sample.context).ids
    asked = sample.questions[0]
    question = tokenizer.encode(asked.text, add_special_tokens=False).ids
    for one in (demo, model):
        cache = jaxkv.compress(one, context, jaxkv.method("full"))
        (found,) = jaxkv.generate(one, question, cache=cache, max_new_tokens=6)
        assert tokenizer.decode(found).startswith(asked.references[0])
