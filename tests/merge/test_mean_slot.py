"""The compensation slot: exact for equal keys, as weighed as what it stands for."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkv.attend.all_pages import attend
from jaxkv.budget.uniform import Uniform
from jaxkv.merge.mean_slot import MeanSlot
from jaxkv.method import Method
from jaxkv.parts import Merge
from jaxkv.score.recency import Recency
from jaxkv.select.top_k import TopK
from tests import laws
from tests.laws import LENGTHS, H, K, N, exact, held, record

ROW = Method(Recency(sinks=4), Uniform(), TopK(), merge=MeanSlot(), keep=0.3)


def with_equal_middle(seen):
    """All keys of a row's middle are one key; values stay different."""
    from dataclasses import replace

    middle = seen.position >= 4
    one = seen.k[:, 4:5]
    return replace(seen, k=jnp.where(middle[..., None, None], one, seen.k))


def test_equal_keys_among_the_dropped_are_attended_exactly():
    """The identity of RazorAttention; without log N_d it would not hold."""
    seen = with_equal_middle(record())
    q, position = laws.queries()
    pages = laws.compressed(ROW, seen)
    out, _ = attend(q, pages, position)
    np.testing.assert_allclose(out, exact(seen, q), rtol=1e-4, atol=1e-5)
    bare = {name: jnp.zeros_like(x) for name, x in pages.slot_state.items()}
    from dataclasses import replace

    off, _ = attend(q, replace(pages, slot_state=bare), position)
    assert np.abs(np.asarray(off) - exact(seen, q))[0].max() > 0.01


def test_output_is_the_weighted_formula():
    """o = (N_d e^{q k^} v^ + sum kept) / (N_d e^{q k^} + sum kept), slot by slot."""
    seen, pages = record(), laws.compressed(ROW)
    q, position = laws.queries()
    out, _ = attend(q, pages, position)
    for b in (0, 1):
        n = int(seen.stored[b].sum())
        slots = int(laws.budget_of(ROW)[b, 0])
        kept = np.r_[0:4, n - (slots - 5) : n]
        dropped = np.setdiff1d(np.arange(n), kept)
        for head in range(N):
            k, v = (
                np.asarray(x[b, :, head // (N // K)], float) for x in (seen.k, seen.v)
            )
            keys = np.vstack([k[kept], k[dropped].mean(0)])
            values = np.vstack([v[kept], v[dropped].mean(0)])
            weight = np.exp(np.asarray(q[b, :, head], float) @ keys.T / np.sqrt(H))
            weight[:, -1] *= len(dropped)
            expected = weight @ values / weight.sum(1, keepdims=True)
            np.testing.assert_allclose(out[b, :, head], expected, rtol=1e-4, atol=1e-5)


def test_the_slot_counts_and_stands_where_the_dropped_begin():
    pages = laws.compressed(ROW)
    for b, row in enumerate(held(pages)):
        for positions in row:
            assert len(positions) == int(laws.budget_of(ROW)[b, 0])
            assert 4 in positions  # the first dropped token's


def test_a_head_that_drops_nothing_has_no_mean():
    from dataclasses import replace

    whole = replace(ROW, keep=1.0)
    plain = replace(whole, merge=Merge())
    ours, theirs = laws.compressed(whole), laws.compressed(plain)
    assert laws.same_positions(held(ours), held(theirs))
    assert float(jnp.abs(ours.slot_state["bias"]).max()) == 0.0
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), ours.position, theirs.position)
    )
    assert len(LENGTHS) == ours.length.shape[0]
