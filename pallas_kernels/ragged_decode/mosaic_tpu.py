"""ragged_decode on TPUs: one loop over the pages that are read, whoever owns them.

Latents' rows, of which the first lanes are values, are read by the same loop.

    of a page   m = max_s z_s,  p_s = exp(z_s - m),  l = sum_s p_s,  o = sum_s p_s v_s
    of a row    (m, l, o) of its pages so far, joined by log-sum-exp;  out = o / l

All pools of a chip are one: a page is told by pool x pages + its id. The rows' tables
and lengths lie in SMEM. The scalar core walks them page by page, a few steps ahead of
the vector core: it starts the copies of a step's pages into one of some buffers, and
leaves behind whose they are. So a row costs the pages that it has, and an empty row
none. (A flat list of pages made before would be gathered by XLA number by number.)

Pages of one step are independent up to the join, so that their products overlap. The
T x G queries of a row are the rows of one small matrix, filled up to 8. Positions are
always read (4 bytes a slot): a slot below a row's length may be empty, and padding sees
nothing. Chips of two cores halve the pages between them, wherever a row is cut, and XLA
joins the halves.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.layout import LANES, AnyEntry, Latent, whole_lanes

SUBLANES = 8
QUERIES = 64  # of a row, at most: each page meets all of them in registers
OF_LATENTS = 128  # the same; they are the heads of a whole model, and in VMEM
DEAD = -1e30  # the logit of a slot that is not seen
LOWEST = -1e29  # the least maximum of a page, so that exp(DEAD - LOWEST) is 0
LOG2E = 1 / log(2)  # maxima and sums are of base 2, which is what the chip raises


@dataclass(frozen=True)
class Sizes:
    """What a step reads, and what one call holds on the chip; see `sizes`."""

    step: int = 2**19  # bytes of keys and values
    buffers: int = 4  # steps whose pages are held, or under way
    product: int = LANES  # slots of one matrix product: as many as the unit is wide
    parts: int = 1  # of the pages, one a core
    smem: int = 768 * 2**10  # bytes of tables in one call
    vmem: int = 8 * 2**20  # bytes of queries and results in one call


@dataclass(frozen=True)
class How:
    """What is computed, and in which sizes; all static."""

    name: str  # of the op
    scale: float
    soft_cap: float | None
    window: int | None
    logits: bool
    tensors: int  # of keys and values: 1, or 2
    value_lanes: tuple[int, int]  # of the last one's rows: the first, and how many
    rows_of_batch: int
    first_row: int  # of the call
    step: int  # pages
    together: int  # pages of one product
    tiles: Sizes
    interpret: Any


def sizes() -> Sizes:
    """Those for the TPU that is compiled for."""
    try:
        tpu = pltpu.get_tpu_info()
    except ValueError:  # a machine without one, and no mesh that names it
        return Sizes()
    return Sizes(product=tpu.mxu_column_size, parts=tpu.num_cores)


def check(q: Array, entry: AnyEntry) -> None:
    """Says what this kernel cannot take, and what to use.

    Raises:
      ValueError: the dtype, or the number of queries.
    """
    T, G = q.shape[3:5]
    dtypes = jnp.float32, jnp.bfloat16
    if not {q.dtype, entry.k.dtype} <= set(map(jnp.dtype, dtypes)):
        raise ValueError(
            f"The Mosaic TPU kernel takes queries and entries of bfloat16 or float32, "
            f"not {q.dtype} and {entry.k.dtype}; use xla.py."
        )
    most = OF_LATENTS if isinstance(entry, Latent) else QUERIES
    if T * G > most:
        raise ValueError(
            f"T x G = {T} x {G} queries of a row exceed {most}, all that the TPU "
            "kernel holds at a time; use xla.py."
        )


def ragged_decode(
    q: Float[Array, "B J R T G H"],
    entry: AnyEntry,
    owner: Int[Array, "B J pages"],
    position: Int[Array, "B J pages P"],
    q_position: Int[Array, "B T"],
    table: Int[Array, "B J R M"],
    length: Int[Array, "B J R"],
    *,
    scale: float,
    soft_cap: float | None = None,
    window: int | None = None,
    bias: Float[Array, "B J pages P"] | None = None,
    return_logits: bool = False,
    value_dim: int | None = None,
    tiles: Sizes | None = None,
    interpret: Any = False,
) -> tuple[
    Float[Array, "B J R T G V"],
    Float[Array, "B J R T G"],
    Float[Array, "B J pages T G P"] | None,
]:
    """Attention of each row's queries over the live slots of its pages.

    As `op.ragged_decode`. Where logits are returned a page is on one table at most,
    and those of slots that are not live may be anything. Tables that pass what one call
    may hold are read by several calls. value_dim: of latents, how many of a row's first
    numbers are its value. Raises ValueError as `check` does.
    """
    check(q, entry)
    B, J, R, T, G, H = q.shape
    pages, P = position.shape[2:]
    rows, M = B * J * R, table.shape[-1]
    tiles = sizes() if tiles is None else tiles
    queries = -(-T * G // SUBLANES) * SUBLANES
    whole = ((0, 0), (0, queries - T * G), (0, 0))
    q_rows = jnp.pad(q.reshape(rows, T * G, H), (*whole[:2], (0, entry.lanes - H)))
    of_query = jnp.pad(
        jnp.repeat(q_position, G, axis=1)[..., None], whole, constant_values=-1
    )
    of_query = jnp.broadcast_to(of_query, (*of_query.shape[:2], LANES))
    first = jnp.arange(B * J, dtype=jnp.int32) * pages
    in_all = jnp.maximum(table, 0) + first.reshape(B, J, 1, 1)
    pool = [x.reshape(B * J * pages, P, -1) for x in jax.tree.leaves(entry)]
    row_bytes = sum(whole_lanes(x.shape[-1]) * x.dtype.itemsize for x in pool)
    by_slot = [x for x in (position, bias) if x is not None]
    how = How(
        name="ragged_decode" if value_dim is None else "latent_decode",
        scale=scale,
        soft_cap=soft_cap,
        window=window,
        logits=return_logits,
        tensors=len(pool),
        value_lanes=(pool[-1].shape[-1] - entry.lanes, entry.lanes)
        if value_dim is None
        else (0, whole_lanes(value_dim)),
        rows_of_batch=J * R,
        first_row=0,
        step=max(1, min(tiles.step // (P * row_bytes), rows * M)),
        together=max(1, tiles.product // P) if P % LANES == 0 else 1,
        tiles=tiles,
        interpret=interpret,
    )
    most = _rows_of_a_call(queries, entry.lanes, M, tiles)
    calls = [
        _call(
            in_all.reshape(rows, M)[i : i + most],
            length.reshape(rows)[i : i + most],
            q_rows[i : i + most],
            of_query,
            [*pool, *(x.reshape(B * J * pages, 1, P) for x in by_slot)],
            replace(how, first_row=i),
        )
        for i in range(0, rows, most)
    ]
    out = jnp.concatenate([call[0] for call in calls])[:, : T * G]
    out = out[..., entry.value_lane :][..., : value_dim or H]
    lse = jnp.concatenate([call[1] for call in calls])[:, : T * G]
    out = out.reshape(*q.shape[:-1], -1).astype(q.dtype)
    lse = lse.reshape(q.shape[:-1])
    if not return_logits:
        return out, lse, None
    row = jnp.arange(B * J, dtype=jnp.int32).reshape(B, J, 1) * R + owner
    logits, *others = (x for call in calls for x in call[2])
    for i, other in enumerate(others, 1):
        logits = jnp.where((row // most == i).reshape(-1, 1, 1), other, logits)
    logits = logits[:, : T * G].reshape(B, J, pages, T, G, P)
    return out, lse, logits


def _rows_of_a_call(queries: int, lanes: int, M: int, tiles: Sizes) -> int:
    """As many rows as fit: their tables in SMEM, their queries and results in VMEM.

    Raises:
      ValueError: not even one row's table fits.
    """
    row_bytes = queries * 4 * (5 * lanes + 4 * LANES)
    most = min(tiles.smem // (4 * M), tiles.vmem // row_bytes)
    if most < 1:
        raise ValueError(
            f"A table of {M} pages for {queries} queries of {lanes} passes what a TPU "
            "core holds; store larger pages, or ask fewer queries at a time."
        )
    return most


def _call(table, length, q, q_position, pool, how: How):
    """(out [rows, queries, H], lse [rows, queries], [logits of all pages]) in fp32."""
    (rows, queries, _), (_, H) = q.shape, how.value_lanes
    pages, P = pool[0].shape[:2]
    parts, buffers, step = how.tiles.parts, how.tiles.buffers, how.step
    fp32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    results = fp32((parts, rows, queries, H)), fp32((parts, rows, queries, LANES))
    buffer = [pltpu.VMEM((buffers, step, *x.shape[1:]), x.dtype) for x in pool]
    lanes = LANES, min(P, LANES), H
    state = [pltpu.VMEM((rows, queries, n), jnp.float32) for n in lanes]
    plan = [pltpu.SMEM((rows + 1,), jnp.int32) for _ in range(3)]
    left_behind = [pltpu.SMEM((buffers * step,), jnp.int32) for _ in range(3)]
    written = (
        [
            pltpu.VMEM((2, step, queries, P), jnp.float32),
            pltpu.SemaphoreType.DMA((2,)),
        ]
        if how.logits
        else []
    )
    out, lse, *logits = pl.pallas_call(
        partial(_kernel, how=how),
        out_shape=(*results, *[fp32((pages + 1, queries, P))] * how.logits),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(parts,),
            in_specs=[_all_of(q), _all_of(q_position), *[anywhere] * len(pool)],
            out_specs=(*map(_by_part, results), *[anywhere] * how.logits),
            scratch_shapes=[
                buffer,
                pltpu.SemaphoreType.DMA((buffers,)),
                state,
                plan,
                left_behind,
                written,
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), disable_bounds_checks=True
        ),
        interpret=how.interpret,
        name=how.name,
    )(table.reshape(-1), length, q, q_position, *pool)
    out, lse = _joined(out, lse[..., 0])
    return out, lse, [x[:-1] for x in logits]


def _all_of(x) -> pl.BlockSpec:
    """The whole array, in VMEM."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _by_part(x) -> pl.BlockSpec:
    """A part's own share of an array, in VMEM."""
    zeros = (0,) * (len(x.shape) - 1)
    return pl.BlockSpec((None, *x.shape[1:]), lambda part, *_: (part, *zeros))


def _joined(out, lse):
    """Attention over all parts' slots."""
    if out.shape[0] == 1:
        return out[0], lse[0]
    total = jax.nn.logsumexp(lse, axis=0)
    share = jnp.exp(lse - jnp.where(jnp.isfinite(total), total, 0.0)[None])
    return (out * share[..., None]).sum(axis=0), total


def _kernel(
    table_ref,
    length_ref,
    q_ref,
    q_position_ref,
    *refs,
    how: How,
):
    pool_refs, refs = refs[: -8 - how.logits], refs[-8 - how.logits :]
    out_ref, lse_ref, *logits_ref, bufs, arrived, states, plan, behind, written = refs
    next_ref, at_ref, slots_ref = plan
    row_ref, left_ref, page_ref = behind
    m_ref, l_ref, o_ref = states
    (rows, queries, H), P = out_ref.shape, pool_refs[0].shape[1]
    M = table_ref.shape[0] // rows
    step, buffers = how.step, how.tiles.buffers
    values = how.tensors - 1  # the buffer whose rows end with values
    key_lanes = pl.ds(0, q_ref.shape[-1])
    value_lanes = pl.ds(*how.value_lanes)

    # Plan: the row after each that has pages, where its table starts, and its slots.
    # After the last one comes `rows`, which has none: what a last step has too much.

    def plan_row(i, carry):
        following, all_pages = carry
        row = rows - 1 - i
        slots = length_ref[row]
        next_ref[row], at_ref[row], slots_ref[row] = following, row * M, slots
        return jnp.where(slots > 0, row, following), all_pages + pages_of(slots)

    def pages_of(slots):
        return jax.lax.div(slots + P - 1, P)

    next_ref[rows], at_ref[rows], slots_ref[rows] = rows, 0, 0
    row, pages = jax.lax.fori_loop(0, rows, plan_row, (jnp.int32(rows), jnp.int32(0)))
    share = pl.cdiv(pages, step * how.tiles.parts) * step  # whole steps but in the last
    skipped = jnp.minimum(pl.program_id(0) * share, pages)
    steps = pl.cdiv(jnp.minimum(pages - skipped, share), step)

    def skip(_, carry):
        row, skipped = carry
        here = pages_of(slots_ref[row])
        over = (skipped >= here) & (skipped > 0)
        return jnp.where(over, next_ref[row], row), skipped - jnp.where(over, here, 0)

    if how.tiles.parts > 1:
        row, skipped = jax.lax.fori_loop(0, rows, skip, (row, skipped))

    # Copy: a walk is at a page `at` of the table, with `left` slots of its row to come.
    # The next row is read long before it is used.

    def start_page(here, buffer, j, walk):
        row, at, left, next_row, next_left = walk
        page = table_ref[at]
        for pool, to in zip(pool_refs, bufs, strict=True):
            to = to.at[buffer, j]
            pltpu.make_async_copy(pool.at[page], to, arrived.at[buffer]).start()
        row_ref[here], left_ref[here] = jnp.minimum(row, rows - 1), left
        if how.logits:
            page_ref[here] = page
        last = left <= P
        at = jnp.where(last, at_ref[next_row], at + 1)
        left = jnp.where(last, next_left, left - P)
        row = jnp.where(last, next_row, row)
        next_row = next_ref[row]
        return row, at, left, next_row, slots_ref[next_row]

    def start(s, walk):
        buffer = jax.lax.rem(s, buffers)
        for j in range(step):
            walk = start_page(buffer * step + j, buffer, j, walk)
        return walk

    def wait(buffer):
        for to in bufs:
            to = to.at[buffer]
            pltpu.make_async_copy(to, to, arrived.at[buffer]).wait()

    # Attend: pages of one product, then the weights of one page.

    def attend(s, buffer, js):
        """(m, l, o) of each page; every page's queries meet all keys of the product."""
        k, v = (
            buf[buffer, pl.ds(js.start, len(js)), :, lanes].reshape(len(js) * P, -1)
            for buf, lanes in ((bufs[0], key_lanes), (bufs[values], value_lanes))
        )
        at = [buffer * step + j for j in js]
        q = jnp.concatenate([q_ref[row_ref[here]] for here in at], axis=0)
        z = _product(q, k, ((1,), (1,)))
        of_page, blocks = [], []
        for i, j in enumerate(js):
            own = z[i * queries : (i + 1) * queries, i * P : (i + 1) * P]
            m, l, p = weights(own, s, buffer, j)
            zero = jnp.zeros_like(p)
            blocks.append([p if x == i else zero for x in range(len(js))])
            of_page.append((m, l))
        p = jnp.concatenate([jnp.concatenate(b, axis=1) for b in blocks], axis=0)
        o = _product(p.astype(v.dtype), v, ((1,), (0,)))
        return [
            (m, l, o[i * queries : (i + 1) * queries])
            for i, (m, l) in enumerate(of_page)
        ]

    def weights(z, s, buffer, j):
        position, *bias = [x[buffer, j] for x in bufs[values + 1 :]]
        row, left = row_ref[buffer * step + j], left_ref[buffer * step + j]
        if how.soft_cap is not None or bias or how.logits:
            z = z * how.scale
            if how.soft_cap is not None:
                z = how.soft_cap * jnp.tanh(z * (1 / how.soft_cap))
            z = sum(bias, z)
            if how.logits:
                written[0][jax.lax.rem(s, 2), j] = z
            z = z * LOG2E
        else:
            z = z * (how.scale * LOG2E)
        batch = jax.lax.div(how.first_row + row, how.rows_of_batch)
        ago = _wide(q_position_ref[batch], P) - position
        # The sign of any of these says that the slot is not seen.
        slot = jax.lax.broadcasted_iota(jnp.int32, (1, P), 1)
        sign = ago | (position | (left - 1 - slot))
        if how.window is not None:
            sign = sign | (how.window - 1 - ago)
        z = jnp.where(sign >= 0, z, DEAD)
        m = jnp.maximum(z.max(axis=1, keepdims=True), LOWEST)
        m = jnp.broadcast_to(m, (queries, LANES))
        p = jnp.exp2(z - _wide(m, P))
        l = sum(p[:, x : x + LANES] for x in range(0, P, LANES))  # by lane
        return m, l, p

    # Join: the state of the row that is read is carried, and stored at each page.

    def join(state, new, fresh):
        (m, l, o), (new_m, new_l, new_o) = state, new
        m = jnp.where(fresh, DEAD, m)
        higher = jnp.maximum(m, new_m)
        keep, add = jnp.exp2(m - higher), jnp.exp2(new_m - higher)
        l = l * _wide(keep, l.shape[1]) + new_l * _wide(add, l.shape[1])
        return higher, l, o * _wide(keep, H) + new_o * _wide(add, H)

    def compute(s, row_before, state):
        buffer = jax.lax.rem(s, buffers)
        wait(buffer)
        if how.logits:
            wait_written(s - 2)
        found = []
        for j in range(0, step, how.together):
            found += attend(s, buffer, range(step)[j : j + how.together])
        for j, new in enumerate(found):
            row = row_ref[buffer * step + j]
            state = join(state, new, row != row_before)
            for ref, x in zip(states, state, strict=True):
                ref[row] = x
            row_before = row
        if how.logits:
            write(s)
        return row_before, state

    # Write: the logits of a page go where the page is, and those of no page to the end.

    def write(s):
        (buf, gone), (to_ref,) = written, logits_ref
        half = jax.lax.rem(s, 2)
        for j in range(step):
            here = jax.lax.rem(s, buffers) * step + j
            page = jnp.where(left_ref[here] > 0, page_ref[here], to_ref.shape[0] - 1)
            pltpu.make_async_copy(
                buf.at[half, j], to_ref.at[page], gone.at[half]
            ).start()

    def wait_written(s):
        buf, gone = written
        half = jax.lax.rem(s + 2, 2)

        @pl.when((s >= 0) & (s < steps))
        def _():
            pltpu.make_async_copy(buf.at[half], buf.at[half], gone.at[half]).wait()

    def nothing(row, _):
        m_ref[row] = jnp.full((queries, LANES), LOWEST, jnp.float32)
        l_ref[row] = jnp.zeros(l_ref.shape[1:], jnp.float32)
        o_ref[row] = jnp.zeros((queries, H), jnp.float32)
        return _

    def finish(row, _):
        l = l_ref[row].sum(axis=1, keepdims=True)
        some = l > 0
        l = jnp.where(some, l, 1.0)
        out_ref[row] = o_ref[row] / l
        lse_ref[row] = jnp.where(some, (m_ref[row] + jnp.log2(l)) / LOG2E, -jnp.inf)
        return _

    at, left = at_ref[row] + skipped, slots_ref[row] - skipped * P
    walk = row, at, left, next_ref[row], slots_ref[next_ref[row]]
    ahead = jnp.minimum(steps, buffers - 1)
    walk = jax.lax.fori_loop(0, ahead, start, walk)
    jax.lax.fori_loop(0, rows, nothing, None)

    def start_and_compute(s, carry):
        walk = start(s + buffers - 1, carry[0])
        return walk, compute(s, *carry[1])

    state = tuple(jnp.zeros(ref.shape[1:], jnp.float32) for ref in states)
    carry = walk, (jnp.int32(-1), state)
    _, carry = jax.lax.fori_loop(0, steps - ahead, start_and_compute, carry)
    jax.lax.fori_loop(steps - ahead, steps, lambda s, carry: compute(s, *carry), carry)
    jax.lax.fori_loop(0, rows, finish, None)
    if how.logits:
        wait_written(steps - 2)
        wait_written(steps - 1)


def _product(x, y, contract):
    """In fp32, with all digits where an operand has them."""
    kind = jnp.promote_types(x.dtype, y.dtype)
    exact = jax.lax.Precision.HIGHEST if kind == jnp.float32 else None
    return jax.lax.dot_general(
        x.astype(kind),
        y.astype(kind),
        (contract, ((), ())),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def _wide(x, lanes: int):
    """An array that is alike in all its LANES lanes, in so many lanes."""
    if lanes > LANES:
        x = jnp.concatenate([x] * (whole_lanes(lanes) // LANES), axis=1)
    return x[:, :lanes]
