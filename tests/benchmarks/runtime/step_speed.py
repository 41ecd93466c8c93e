"""A zeroth-order step against two bare forward passes of a plain model of the same shapes.

two forwards    2 · 2 · weights · tokens FLOPs, 2 bytes per weight read twice
a step          the same FLOPs, half a byte per weight read once where both signs are paired

Pairing is measured up to the number of tokens at which the product does it; above, both ways are the same one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from peers.bare_forward import two_bare_forwards
from peers.labelled_batch import random_batch
from runtime.limits import Limits
from runtime.scale import Batch
from runtime.stopwatch import Action, Timing, alternate, as_json, ratio
from runtime.workplace import Workplace
from runtime.zo_step import ZoStep, is_paired, step_parts
from torch import nn

from device_client.model.sparse_model import SparseModel
from device_client.tuning.perturbations import Drawing

PART_ROUNDS = 7


def step_figures(place: Workplace, limits: Limits) -> dict[str, Any]:
    """Return the figures of every batch in the 16-bit dtype, and in float32 where that is the product's default."""
    scale = place.scale
    found: dict[str, Any] = {str(scale.dtype): _figures(place, scale.step_blocks, scale.dtype, scale.steps, limits)}
    if scale.float32_steps:
        blocks = scale.float32_blocks
        found["torch.float32"] = _figures(place, blocks, torch.float32, scale.float32_steps, limits)
    return found


def _figures(
    place: Workplace, blocks: int, dtype: torch.dtype, batches: tuple[Batch, ...], limits: Limits
) -> dict[str, Any]:
    packed, plain, drawing = place.packed(blocks, dtype=dtype), place.plain(blocks, dtype), place.drawing()
    reference = place.packed(blocks, dtype=dtype, backend="reference") if dtype == torch.float32 else None
    figures = {}
    for batch in batches:
        others: dict[str, Action] = {}
        if reference is not None and batch is batches[-1]:
            others["step_with_reference_backend"] = ZoStep(reference, batch, points=batch.points, drawing=drawing)
        figures[f"{batch.rows}x{batch.columns}"] = _batch_figures(packed, plain, batch, drawing, others, limits) | {
            "blocks": blocks
        }
    del packed, plain, reference
    place.clean_up()
    return figures


def _batch_figures(
    packed: SparseModel, plain: nn.Module, batch: Batch, drawing: Drawing, others: dict[str, Action], limits: Limits
) -> dict[str, Any]:
    tokens = random_batch(batch.rows, batch.columns, _vocabulary(packed), device=packed.device, seed=0).tokens
    own = {"single": ZoStep(packed, batch, points=1, drawing=drawing)}
    if is_paired(batch, packed.device):
        own["paired"] = ZoStep(packed, batch, points=2, drawing=drawing)
    is_same = len({step() for step in own.values()}) == 1
    actions: dict[str, Action] = {**own, "two_forwards": lambda: two_bare_forwards(plain, tokens), **others}
    timings = alternate(actions, packed.device, batch.effort)
    chosen = timings["paired" if batch.points == 2 and "paired" in own else "single"]
    least = _least_seconds(packed, batch, limits)
    figures = {
        "rows": batch.rows,
        "columns": batch.columns,
        "points_at_once": batch.points,
        "times": as_json(timings),
        "step_over_two_forwards": ratio(chosen, timings["two_forwards"]),
        "single_over_two_forwards": ratio(timings["single"], timings["two_forwards"]),
        "limit_ms": 1e3 * least,
        "step_over_limit": chosen.median / least,
        "parts": step_parts(packed, batch, drawing=drawing, rounds=min(PART_ROUNDS, batch.effort.most_rounds)),
    }
    figures |= {name: ratio(timings[name], timings["two_forwards"]) for name in others}
    return figures | (_pairing(timings, is_same) if "paired" in own else {})


def _pairing(timings: Mapping[str, Timing], is_same: bool) -> dict[str, Any]:
    return {
        "paired_over_two_forwards": ratio(timings["paired"], timings["two_forwards"]),
        "pairing_gain": ratio(timings["single"], timings["paired"]),
        "paired_losses_equal_single_ones": is_same,
    }


def _least_seconds(packed: SparseModel, batch: Batch, limits: Limits) -> float:
    """Return the time of the linear layers' FLOPs at both signs, or of reading the codes once, whichever is longer."""
    weights = sum(math.prod(entry.shape) for entry in packed.config.tensors)
    is_float32 = packed.compute_dtype == torch.float32
    return limits.seconds(flops=4.0 * weights * batch.tokens, bytes_read=weights / 2, is_float32=is_float32)


def _vocabulary(packed: SparseModel) -> int:
    return int(packed.config.architecture["vocab_size"])
