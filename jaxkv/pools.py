"""How many slots: each row's own budget, which is data, and the pools' static sizes.

Programs are compiled for pool sizes, and those come from the bucket that prompts pad
to; so prompts of many lengths share few programs. Layers whose budgets differ use at
most SIZES pool sizes, each rounded up, which shows as headroom.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxkv.cache.pages import PoolShape
from jaxkv.calibrate.store import calibration
from jaxkv.heads import Heads
from jaxkv.layerwise import head_groups
from jaxkv.method import Method
from jaxkv.models.config import DecoderConfig
from jaxkv.models.decoder import Decoder
from pallas_kernels.layout import page_slots

SIZES = 4


@dataclass(frozen=True)
class Plan:
    """A method's pools, every row's slots, and what was calibrated for it.

    Slots and limits are of the host, or of a program whose prompts are data.
    """

    shapes: tuple[PoolShape, ...]
    slots: np.ndarray | Array  # [L, B, K]
    limits: np.ndarray | Array
    calibrated: Mapping[str, Mapping[str, np.ndarray]]

    def calibration(self, layer: int) -> dict[str, dict[str, Array]]:
        """One layer's arrays, by kind and name."""
        return {
            kind: {name: jnp.asarray(array[layer]) for name, array in arrays.items()}
            for kind, arrays in self.calibrated.items()
        }

    def of_layer(
        self, layer: int, method: Method
    ) -> tuple[Int[Array, "B K"], Int[Array, "B K"] | None, PoolShape]:
        """Slots, limits where every step evicts, and the pool of one layer."""
        shape = self.shapes[layer]

        def own(slots_LBK: np.ndarray | Array) -> Int[Array, "B K"]:
            rows = shape.groups * shape.rows
            return jnp.asarray(slots_LBK[layer, :, :rows], jnp.int32)

        limits = None if method.upkeep is None else own(self.limits)
        return own(self.slots), limits, shape

    def of_model(self, method: Method) -> tuple[Int[Array, "B rows"], PoolShape]:
        """The same of a pool that all layers share: rows are [J, span, rows]."""
        (shape,) = self.shapes
        slots = self.slots.swapaxes(0, 1)
        B, L, K = slots.shape
        slots = slots.reshape(B, L, shape.groups, -1).swapaxes(1, 2)
        return jnp.asarray(slots.reshape(B, L * K), jnp.int32), shape


def planned(
    model: Decoder,
    method: Method,
    lengths: np.ndarray,
    longest: int,
    rerun: int,
    headroom: int,
    groups: int | None,
) -> Plan:
    """The plan for prompts of `lengths`, in pools for any of up to `longest` tokens.

    groups: as the mesh has them that the model lies on when not given. Raises
    ValueError, one sentence, for groups or a headroom that no pool can have, and for a
    method that what the model's layers attend with is not made for.
    """
    config = model.config
    groups = head_groups(model) if groups is None else groups
    _check_kinds(method, config)
    for layer in range(config.layers):
        if config.rows(layer) % groups:
            heads = f"{config.rows(layer)} kv heads"
            what = heads if config.by_head(layer) else "one row of latents"
            raise ValueError(f"groups={groups} does not divide the model's {what}.")
    if headroom < 1:
        raise ValueError(f"headroom={headroom}; reserve one token at least.")
    calibrated = {kind: calibration(model, kind) for kind in method.calibrations}
    heads = Heads.of(config, calibrated)
    return Plan(
        pool_shapes(method, heads, longest, headroom, groups),
        *row_slots(method, heads, lengths, rerun),
        calibrated,
    )


def _check_kinds(method: Method, config: DecoderConfig) -> None:
    """The parts have a use for what layers cache that have no grouped queries."""
    for sizes in dict.fromkeys(filter(None, config.attention)):
        for part in (method.score, method.budget, method.merge, method.cache):
            against = part.against(sizes)
            if against is not None:
                raise ValueError(
                    f"{type(part).__name__} {against}; use another method on a model "
                    f"with {sizes.kind.replace('_', '-')} attention."
                )
    if method.budget.model_wide and len(set(config.attention)) > 1:
        raise ValueError(
            f"{type(method.budget).__name__} keeps all layers in one pool, and the "
            "layers' entries differ; use a method that budgets each layer."
        )


def pool_shapes(
    method: Method, heads: Heads, longest: int, headroom: int, groups: int
) -> tuple[PoolShape, ...]:
    """A pool for each layer, or one for all, for prompts of up to `longest` tokens.

    Whether a prompt's last token is stored or run again makes no difference, so that
    both share programs.
    """
    L = heads.layers
    rows = [heads.rows_of(layer) for layer in range(L)]
    bound_LK = method.budget.bound(method, longest, heads)
    slots = method.slots(longest)
    most = max(method.budget.most(slots, longest), int(bound_LK.max()))
    page = page_slots(int(bound_LK.mean()))
    own = [
        bound_K[:K].reshape(groups, -1)
        for bound_K, K in zip(bound_LK, rows, strict=True)
    ]
    total_LJ = np.stack([bound_JR.sum(axis=1) for bound_JR in own])
    wide = method.budget.model_wide
    totals = [total_LJ.sum(axis=0).max()] if wide else _few(total_LJ.max(axis=1))
    span = L if wide else 1
    return tuple(
        PoolShape(
            groups=groups,
            rows=span * K // groups,
            total=int(total),
            most=most,
            headroom=headroom,
            page=page,
            span=span,
        )
        for total, K in zip(totals, rows[: len(totals)], strict=True)
    )


def row_slots(
    method: Method, heads: Heads, lengths: np.ndarray, rerun: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slots [L, B, K] of each prompt's heads after prefill, and what they may grow to.

    The latter only counts in rows that evict at every step.
    """
    slots, limits = [], []
    for length in map(int, lengths):
        asked = method.slots(length)
        slots.append(np.maximum(method.budget.heads(asked, length, heads) - rerun, 0))
        limits.append(method.budget.limits(asked, length, heads))
    return np.stack(slots, axis=1), np.stack(limits, axis=1)


def _few(totals: np.ndarray) -> np.ndarray:
    """The sizes, each rounded up to one of at most SIZES of them."""
    levels = np.unique(totals)
    if len(levels) > SIZES:
        levels = np.array([part[-1] for part in np.array_split(levels, SIZES)])
    return levels[np.searchsorted(levels, totals)]
