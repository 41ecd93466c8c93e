"""A step on the sensitive values against MeZO's step on all of them, the same blocks and batch.

MeZO    two forwards, and four passes over all weights: 4 normal values drawn and 3 times 2 bytes moved per weight
a step  two forwards, and 0.1 % of that
"""

from __future__ import annotations

from typing import Any

from peers.labelled_batch import random_batch
from peers.mezo import mezo_step
from runtime.scale import Batch
from runtime.stopwatch import Action, alternate, as_json, ratio
from runtime.workplace import Workplace
from runtime.zo_step import EPSILON, LEARNING_RATE, ZoStep
from torch import nn

from device_client.model.sparse_model import SparseModel
from device_client.tuning.perturbations import Drawing


def mezo_figures(place: Workplace) -> dict[str, Any]:
    """Return the figures of every batch."""
    scale = place.scale
    packed, plain = place.packed(scale.mezo_blocks), place.plain(scale.mezo_blocks)
    found: dict[str, Any] = {
        f"{batch.rows}x{batch.columns}": _batch_figures(packed, plain, batch, place.drawing())
        for batch in scale.mezo_steps
    }
    found["blocks"] = scale.mezo_blocks
    found["weights"] = sum(parameter.numel() for parameter in plain.parameters())
    del packed, plain
    place.clean_up()
    return found


def _batch_figures(packed: SparseModel, plain: nn.Module, batch: Batch, drawing: Drawing) -> dict[str, Any]:
    own = ZoStep(packed, batch, points=batch.points, drawing=drawing)
    given = random_batch(
        batch.rows, batch.columns, int(packed.config.architecture["vocab_size"]), device=packed.device, seed=0
    )
    actions: dict[str, Action] = {
        "step": own,
        "mezo": lambda: mezo_step(plain, given, epsilon=EPSILON, lr=LEARNING_RATE, seed=0),
    }
    timings = alternate(actions, packed.device, batch.effort)
    return {"times": as_json(timings), "speedup": ratio(timings["mezo"], timings["step"])}
