"""Figure 1: training and inference speed of three ways to choose what is tuned.

    sensitive 0.1 %     our packed model
    random 10 %         the same with a hundred times as many values
    all, 16 bit         MeZO on a plain model

The first two run with both implementations, SparseAdd and SparseAddMM (``sparse_operations``), and the faster one
counts, as in the paper (C.6). In training SparseAddMM is only measured on few tokens and few values: elsewhere a step
takes minutes with it, against seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peers.labelled_batch import random_batch
from peers.mezo import mezo_step
from runtime.next_tokens import by_modules, per_token
from runtime.scale import Batch
from runtime.stopwatch import Action, Timing, alternate, as_json
from runtime.workplace import Workplace
from runtime.zo_step import EPSILON, LEARNING_RATE, ZoStep
from torch import nn

from device_client.model.sparse_model import SparseModel

SPARSITIES = {"sensitive_0.1": 0.001, "random_10": 0.1}
FUSED_UP_TO_TOKENS, FUSED_UP_TO_SPARSITY = 256, 0.01


@dataclass(frozen=True, slots=True)
class _Models:
    packed: dict[str, SparseModel]
    plain: nn.Module

    @classmethod
    def make(cls, place: Workplace, blocks: int) -> _Models:
        packed = {name: place.packed(blocks, sparsity=sparsity) for name, sparsity in SPARSITIES.items()}
        return cls(packed, place.plain(blocks))


def sparsity_figures(
    place: Workplace, batches: tuple[Batch, ...], *, training_blocks: int, inference_blocks: int
) -> dict[str, Any]:
    """Return milliseconds per block of a training step of each batch, and of one token."""
    models = _Models.make(place, training_blocks)
    training = {str(batch.tokens): _training(models, batch, training_blocks, place) for batch in batches}
    del models
    place.clean_up()
    inference = _inference(_Models.make(place, inference_blocks), inference_blocks, place)
    place.clean_up()
    return {"training": training, "inference": inference}


def _training(models: _Models, batch: Batch, blocks: int, place: Workplace) -> dict[str, Any]:
    given = random_batch(batch.rows, batch.columns, place.scale.vocabulary, device=place.device, seed=0)
    actions: dict[str, Action] = {
        "all_16_bit.mezo": lambda: mezo_step(models.plain, given, epsilon=EPSILON, lr=LEARNING_RATE, seed=0)
    }
    for name, model in models.packed.items():
        actions[f"{name}.sparse_add"] = ZoStep(model, batch, points=2, drawing=place.drawing())
        if batch.tokens <= FUSED_UP_TO_TOKENS and SPARSITIES[name] <= FUSED_UP_TO_SPARSITY:
            actions[f"{name}.sparse_addmm"] = _fusing(
                model, batch.tokens, ZoStep(model, batch, points=1, drawing=place.drawing())
            )
    return _lowest(alternate(actions, place.device, batch.effort), blocks) | {"blocks": blocks, "rows": batch.rows}


def _inference(models: _Models, blocks: int, place: Workplace) -> dict[str, Any]:
    cached = place.scale.cached_tokens
    actions: dict[str, Action] = {"all_16_bit.plain": by_modules(models.plain, cached)}
    for name, model in models.packed.items():
        model.write_theta(model.initial_theta())
        actions[f"{name}.sparse_add"] = by_modules(model.network, cached)
        actions[f"{name}.sparse_addmm"] = by_modules(model.network, cached, model.runtime)
    timings = per_token(alternate(actions, place.device, place.scale.effort))
    return _lowest(timings, blocks) | {"blocks": blocks}


def _fusing(model: SparseModel, tokens: int, step: Callable[[], object]) -> Action:
    def action() -> None:
        with model.runtime.fusing(tokens):
            step()

    return action


def _lowest(timings: dict[str, Timing], blocks: int) -> dict[str, Any]:
    """Return all timings, and of each choice the faster implementation and its milliseconds per block."""
    lowest: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        choice, _, implementation = name.rpartition(".")
        milliseconds = 1e3 * timing.median / blocks
        if choice not in lowest or milliseconds < lowest[choice]["ms_per_block"]:
            lowest[choice] = {"ms_per_block": milliseconds, "implementation": implementation}
    return {"times": as_json(timings), "lowest": lowest}
