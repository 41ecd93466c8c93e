"""Spreads a model's blocks over accelerators, in order, so that every one stays within its budget.

Blocks fill the devices one after another: if any contiguous placement fits, this one does. The load is then evened out:
the smallest share f of every budget is searched at which filling still succeeds.
Costs some hundred evaluations of the load. Knows nothing about how a load is worked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.peak_memory import Placement

_HALVINGS = 8


class Load(Protocol):
    """Bytes that one device needs."""

    def __call__(self, blocks: range, *, has_front: bool, has_rear: bool) -> int:
        """Return the bytes for these blocks, with what stands in front of them or behind them."""


def place(block_count: int, budgets: Sequence[int], load: Load) -> Placement | None:
    """Return an even placement within the budgets, or None where there is none.

    Args:
        block_count: Number of blocks.
        budgets: Bytes of each device; trailing devices may stay unused.
        load: What a device with some of the blocks needs; more blocks need more.
    """
    best = _fill(block_count, budgets, load)
    if best is None or len(budgets) == 1:
        return best
    fits, fails = 1.0, 0.0
    for _ in range(_HALVINGS):
        share = (fits + fails) / 2
        even = _fill(block_count, [int(share * budget) for budget in budgets], load)
        if even is None:
            fails = share
        else:
            fits, best = share, even
    return best


def device_map(shape: ModelShape, placement: Placement) -> dict[str, int]:
    """Return module name → device index for ``accelerate.dispatch_model``; every module is named once."""
    front = dict.fromkeys(shape.front_modules, 0)
    if shape.family.has_rotary_embedding:
        front[f"{shape.block_path.rpartition('.')[0]}.rotary_emb"] = 0
    blocks = {f"{shape.block_path}.{block}": device for device, part in enumerate(placement.blocks) for block in part}
    rear = dict.fromkeys(shape.rear_modules, placement.rear)
    return front | blocks | rear | ({"lm_head": 0} if shape.is_tied else {})


def _fill(block_count: int, budgets: Sequence[int], load: Load) -> Placement | None:
    parts: list[range] = []
    start = 0
    for device, budget in enumerate(budgets):
        end = _furthest(start, block_count, budget, load, has_front=device == 0)
        if end is None:
            return None
        parts.append(range(start, end))
        if end == block_count and load(parts[-1], has_front=device == 0, has_rear=True) <= budget:
            return Placement(tuple(parts), device)
        start = end
    return None


def _furthest(start: int, block_count: int, budget: int, load: Load, *, has_front: bool) -> int | None:
    """Return where a device that begins with block ``start`` must end; None where not even the front fits."""
    fits, fails = start, block_count + 1
    if load(range(start, start), has_front=has_front, has_rear=False) > budget:
        return None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if load(range(start, middle), has_front=has_front, has_rear=False) <= budget:
            fits = middle
        else:
            fails = middle
    return fits
