"""ragged_decode on TPUs: one loop over the pages that are read, whoever owns them.

All pools of a chip are one: a page is told by pool x pages + its id. The rows' tables
and lengths lie in SMEM, and the scalar core walks them page by page, some steps ahead of
the vector core: it starts the copies of `Sizes.slots` slots a step into one of
`Sizes.buffers` buffers, and leaves behind whose pages they are. So rows of any length
cost the pages that they have, an empty row costs nothing, and no list is made before.
(To flatten the tables XLA would gather them number by number.)

    of a page    m = max_s z_s,    p_s = exp(z_s - m),    l = sum_s p_s,    o = sum_s p_s v_s
    of a row     (m, l, o) of its pages so far, joined by log-sum-exp

Pages of one step are independent up to that join, so that their products overlap. The
T x G queries of a row are the rows of one small matrix, filled up to 8. Logits are in
base 2, and l is summed over lanes at the end only. Positions are always read (4 bytes
for every 4 H of a slot in half precision): a slot below a row's length may be empty, and
padding sees nothing. Chips of two cores halve the pages between them, wherever a row is
cut, and XLA joins the halves.
"""

from dataclasses import dataclass
from functools import partial
from math import log, prod

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import Entry

LANES, SUBLANES = 128, 8
DEAD = -1e30  # the logit of a slot that is not seen
LOWEST = -1e29  # the least maximum, so that exp(DEAD - LOWEST) is 0 and never NaN
LOG2E = 1 / log(2)
SMEM = 768 * 1024  # bytes of tables that one call may hold, of 1 MiB
VMEM = 6 * 1024 * 1024  # bytes of queries and results that one call may hold


@dataclass(frozen=True)
class Sizes:
    """slots: how many a step reads. buffers: steps whose pages are held, or under way."""

    slots: int = 1024
    buffers: int = 4
    parts: int = 1  # of the pages, one a core


def sizes() -> Sizes:
    """Those of the TPU that is compiled for."""
    try:
        cores = pltpu.get_tpu_info().num_cores
    except ValueError:  # a machine without one, and no mesh that names it
        cores = 1
    return Sizes(parts=cores)


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: Entry,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    bias: Float[Array, "B J pages P"] | None = None,
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    return_logits: bool = False,
    tiles: Sizes | None = None,
    interpret=False,
) -> tuple[
    Float[Array, "B J R T G H"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `op.ragged_decode`. Where logits are returned a page is on one table at most.
    """
    B, J, R, T, G, H = q.shape
    pages, P = position.shape[2:]
    M = table.shape[-1]
    rows, queries = B * J * R, -(-T * G // SUBLANES) * SUBLANES
    tiles = sizes() if tiles is None else tiles
    short = ((0, 0), (0, queries - T * G), (0, 0))
    q_rows = jnp.pad(q.reshape(rows, T * G, H), short)
    by_query = jnp.pad(
        jnp.repeat(q_position, G, axis=1), short[:2], constant_values=-1
    )
    by_query = jnp.broadcast_to(by_query[..., None], (B, queries, LANES))
    pool = jnp.arange(B * J).reshape(B, J, 1, 1) * pages
    table = (jnp.maximum(table, 0) + pool).reshape(rows * M)
    used = -(-length.reshape(rows) // P)
    slots = [x.reshape(B * J * pages, 1, P) for x in (position, bias) if x is not None]
    call = partial(
        _call,
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        tiles=tiles,
        interpret=interpret,
        rows_of_batch=J * R,
    )
    out, lse = call(
        table,
        used,
        length.reshape(rows),
        q_rows,
        by_query,
        *(x.reshape(B * J * pages, P, H) for x in entry),
        slots,
    )
    out = out[:, : T * G].reshape(q.shape).astype(q.dtype)
    return out, lse[:, : T * G].reshape(B, J, R, T, G), None


def _call(table, used, length, q, q_position, k, v, slots, *, tiles, interpret, **how):
    """(out [rows, queries, H] and lse [rows, queries]) of rows of one table, fp32."""
    rows, queries, H = q.shape
    P = k.shape[1]
    parts, buffers = tiles.parts, tiles.buffers
    step = max(1, tiles.slots // P)
    whole = lambda *shape: pl.BlockSpec(shape, lambda *_: (0,) * len(shape))
    of_part = lambda *shape: pl.BlockSpec(
        (None, *shape), lambda part, *_: (part, *[0] * len(shape))
    )
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    lanes = min(P, LANES)
    fp32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    out, lse = pl.pallas_call(
        partial(_kernel, step=step, buffers=buffers, **how),
        out_shape=(fp32((parts, rows, queries, H)), fp32((parts, rows, queries, LANES))),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(parts,),
            in_specs=[
                whole(*q.shape),
                whole(*q_position.shape),
                *[anywhere] * (2 + len(slots)),
            ],
            out_specs=(of_part(rows, queries, H), of_part(rows, queries, LANES)),
            scratch_shapes=[
                [
                    pltpu.VMEM((buffers, step, *x.shape[1:]), x.dtype)
                    for x in (k, v, *slots)
                ],
                [
                    pltpu.VMEM((rows, queries, last), jnp.float32)
                    for last in (LANES, lanes, H)
                ],
                [pltpu.SMEM((buffers, step), jnp.int32) for _ in range(2)],
                pltpu.SemaphoreType.DMA((buffers,)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), disable_bounds_checks=True
        ),
        interpret=interpret,
        name="ragged_decode",
    )(table, used, length, *_walk(used, parts), q, q_position, k, v, *slots)
    lse = lse[..., 0]
    if parts == 1:
        return out[0], lse[0]
    total = jax.nn.logsumexp(lse, axis=0)
    share = jnp.exp(lse - jnp.where(jnp.isfinite(total), total, 0.0))
    return (out * share[..., None]).sum(axis=0), total


def _walk(used, parts):
    """Where to go after a row's last page, and where each part starts and how far.

    Returns the next row that has a page (the row itself where none has), and for each
    part its first row, its first page in that row, and its pages.
    """
    rows = used.shape[0]
    row = jnp.arange(rows, dtype=jnp.int32)
    after = (row[None] > row[:, None]) & (used > 0)[None]
    following = jnp.where(after, row[None], rows).min(axis=1)
    following = jnp.where(following < rows, following, row)
    end = jnp.cumsum(used)
    cut = end[-1] * jnp.arange(parts + 1, dtype=jnp.int32) // parts
    first = jnp.minimum((end[None] <= cut[:-1, None]).sum(axis=1), rows - 1)
    start = jnp.stack([first, cut[:-1] - (end - used)[first], cut[1:] - cut[:-1]])
    return following.astype(jnp.int32), start.astype(jnp.int32).reshape(-1)


def _kernel(
    table_ref,
    used_ref,
    length_ref,
    following_ref,
    start_ref,
    q_ref,
    q_position_ref,
    *refs,
    step,
    buffers,
    scale,
    soft_cap,
    window,
    rows_of_batch,
):
    *pool_refs, out_ref, lse_ref, pool_bufs, state_refs, owner_refs, arrived = refs
    m_ref, l_ref, o_ref = state_refs
    row_ref, fill_ref = owner_refs
    k_buf, v_buf, position_buf, *bias_buf = pool_bufs
    rows, queries, H = out_ref.shape
    P = k_buf.shape[2]
    M = table_ref.shape[0] // rows
    part, parts = pl.program_id(0), pl.num_programs(0)
    first_row, first_page, items = (start_ref[i * parts + part] for i in range(3))
    steps = pl.cdiv(items, step)

    def copies(buffer, j, page):
        return [
            pltpu.make_async_copy(pool.at[page], to.at[buffer, j], arrived.at[buffer])
            for pool, to in zip(pool_refs, pool_bufs, strict=True)
        ]

    def start(s, at):
        """Starts the copies of step s, from where the walk is; returns where it goes on."""
        buffer = jax.lax.rem(s, buffers)
        row, m, i = at
        for j in range(step):
            for copy in copies(buffer, j, table_ref[row * M + m]):
                copy.start()
            row_ref[buffer, j] = row
            fill = jnp.minimum(length_ref[row] - m * P, P)
            fill_ref[buffer, j] = jnp.where(i < items, fill, 0)
            i = i + 1
            last, more = m + 1 >= used_ref[row], i < items
            m = jnp.where(more, jnp.where(last, 0, m + 1), m)
            row = jnp.where(more & last, following_ref[row], row)
        return row, m, i

    def wait(buffer):
        for to in pool_bufs:
            to = to.at[buffer]
            pltpu.make_async_copy(to, to, arrived.at[buffer]).wait()

    def page(buffer, j, row, fill):
        """(m, l, o) of one page."""
        k, v = k_buf[buffer, j], v_buf[buffer, j]
        z = _product(q_ref[row], k, ((1,), (1,)))
        if soft_cap is None and not bias_buf:
            z = z * (scale * LOG2E)
        else:
            z = z * scale
            if soft_cap is not None:
                z = soft_cap * jnp.tanh(z * (1 / soft_cap))
            for bias in bias_buf:
                z = z + bias[buffer, j]
            z = z * LOG2E
        stored = position_buf[buffer, j]
        ago = _wide(q_position_ref[row // rows_of_batch], P) - stored
        # The sign of any of these says that the slot is not seen.
        slot = jax.lax.broadcasted_iota(jnp.int32, (1, P), 1)
        sign = ago | (stored | (fill - 1 - slot))
        if window is not None:
            sign = sign | (window - 1 - ago)
        z = jnp.where(sign >= 0, z, DEAD)
        highest = jnp.maximum(z.max(axis=1, keepdims=True), LOWEST)
        m = jnp.broadcast_to(highest, (queries, LANES))
        p = jnp.exp2(z - _wide(m, P))
        l = sum(p[:, x : x + LANES] for x in range(0, P, LANES))
        return m, l, _product(p.astype(v.dtype), v, ((1,), (0,)))

    def join(state, part, fresh):
        m, l, o = state
        page_m, page_l, page_o = part
        m = jnp.where(fresh, DEAD, m)
        higher = jnp.maximum(m, page_m)
        keep, add = jnp.exp2(m - higher), jnp.exp2(page_m - higher)
        l = l * _wide(keep, l.shape[1]) + page_l * _wide(add, l.shape[1])
        return higher, l, o * _wide(keep, H) + page_o * _wide(add, H)

    def compute(s, row_before, state):
        buffer = jax.lax.rem(s, buffers)
        wait(buffer)
        rows_here = [row_ref[buffer, j] for j in range(step)]
        parts = [page(buffer, j, rows_here[j], fill_ref[buffer, j]) for j in range(step)]
        for row, part in zip(rows_here, parts, strict=True):
            state = join(state, part, row != row_before)
            for ref, x in zip(state_refs, state, strict=True):
                ref[row] = x
            row_before = row
        return row_before, state

    def nothing(row, _):
        m_ref[row] = jnp.full(m_ref.shape[1:], LOWEST)
        l_ref[row] = jnp.zeros(l_ref.shape[1:])
        o_ref[row] = jnp.zeros(o_ref.shape[1:])
        return _

    def finish(row, _):
        l = l_ref[row].sum(axis=1, keepdims=True)
        some = l > 0
        safe = jnp.where(some, l, 1.0)
        out_ref[row] = o_ref[row] / safe
        lse_ref[row] = jnp.where(some, (m_ref[row] + jnp.log2(safe)) / LOG2E, -jnp.inf)
        return _

    ahead = jnp.minimum(steps, buffers - 1)
    at = jax.lax.fori_loop(0, ahead, start, (first_row, first_page, jnp.int32(0)))
    jax.lax.fori_loop(0, rows, nothing, 0)

    def step_and_start(s, carry):
        at, row_before, state = carry
        at = start(s + buffers - 1, at)
        return at, *compute(s, row_before, state)

    state = tuple(jnp.zeros(ref.shape[1:]) for ref in state_refs)
    carry = at, jnp.int32(-1), state
    _, row_before, state = jax.lax.fori_loop(0, steps - ahead, step_and_start, carry)
    jax.lax.fori_loop(
        steps - ahead, steps, lambda s, carry: compute(s, *carry), (row_before, state)
    )
    jax.lax.fori_loop(0, rows, finish, 0)


def _product(x, y, contract):
    """In fp32, with all digits where the operands have them."""
    kind = jnp.promote_types(x.dtype, y.dtype)
    highest = kind == jnp.float32
    return jax.lax.dot_general(
        x.astype(kind),
        y.astype(kind),
        (contract, ((), ())),
        precision=jax.lax.Precision.HIGHEST if highest else None,
        preferred_element_type=jnp.float32,
    )


def _wide(x, lanes):
    """An array that is alike in all its LANES lanes, in so many lanes."""
    if lanes <= LANES:
        return x[:, :lanes]
    return jnp.concatenate([x] * -(-lanes // LANES), axis=1)[:, :lanes]
