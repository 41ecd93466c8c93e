"""One zeroth-order step as the tuning loop makes it, journal and validation apart; and what of it are no forwards.

    batch laid out · z of the step, drawn ahead · L(θ + εz), L(θ − εz) · g · θ ← θ − η·g·z

    update share          = (drawing z + θ ± εz rounded and written + values written while decoding + update) / step
    share beside forwards = (drawing z + step − forwards + values written while decoding) / step

Both count z in full, drawn alone, although its thread draws it beside the products. The second counts the batch's
layout and the losses too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from runtime.scale import Batch
from runtime.stopwatch import seconds_of
from runtime.without_values import without_values
from torch import Tensor

from device_client.model.backends.library_product import multiply_decoded
from device_client.model.backends.native.amx import PASS_TOKENS
from device_client.model.backends.weight import EVERY_ROW, Weight
from device_client.model.linear import QuantizedSparseLinear
from device_client.model.points import Point
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.model.tunable_model import TunableModel
from device_client.planning.workload import PAIRED_UP_TO_TOKENS
from device_client.tuning.batches import BatchIndices
from device_client.tuning.goals import LossGoal
from device_client.tuning.model_problem import ModelProblem, PointsModel
from device_client.tuning.perturbations import Drawing, PerturbationStream
from device_client.tuning.spsa import descend, estimate
from shared.tasks.examples import Example

EPSILON = 1e-3
LEARNING_RATE = float(np.float32(1e-7))
ANSWERS = ((5,), (6,))
SMALL_PARTS = 3  # as many times more often: what is small beside its own noise
BATCHES_PER_EPOCH = 4


class ZoStep:
    """Makes the next step on each call.

    Args:
        model: What is tuned.
        batch: Rows of each step.
        points: θ's side by side: 2 pairs both signs over one decoding where the product does so (``is_paired``), 1 runs
            them one after the other.
        drawing: What draws z.
        update: Moves θ.
        seen: What the loop sees of what is tuned; that itself where nothing is said.
        upper: The model's upper blocks, where only they are tuned.
    """

    def __init__(
        self,
        model: SparseModel,
        batch: Batch,
        *,
        points: int,
        drawing: Drawing,
        update: Callable[..., Tensor] = descend,
        seen: PointsModel | None = None,
        upper: TunableModel | None = None,
    ) -> None:
        tuned = model if upper is None else upper
        examples = random_examples(batch, int(model.config.architecture["vocab_size"]))
        indices = BatchIndices(len(examples), batch.rows, seed=0)
        self._problem = ModelProblem(
            seen or tuned, examples, examples, LossGoal(seen or tuned, "candidates"), indices, batch.rows, points
        )
        self._update = update
        self._theta = tuned.initial_theta()
        self._draw = PerturbationStream(0, self._theta.numel(), drawing, model.device)
        self._step = 0

    def __call__(self) -> tuple[float, float]:
        """Make a step, and return both losses.

        Raises:
            ArithmeticError: A loss is not finite: what is timed would be no step.
        """
        batch = self._problem.batch(self._step)
        directions = [self._draw(self._step, 0)]
        (found,) = estimate(self._problem.losses, self._theta, directions, EPSILON, batch)
        if not math.isfinite(found.projected_gradient):
            raise ArithmeticError(f"the losses of step {self._step} are {found.loss_plus} and {found.loss_minus}")
        self._theta = self._update(self._theta, directions, [found.projected_gradient], LEARNING_RATE)
        self._step += 1
        return found.loss_plus, found.loss_minus


def is_paired(batch: Batch, device: torch.device) -> bool:
    """Return whether the product runs both signs of such a batch side by side where it may."""
    return batch.tokens <= PAIRED_UP_TO_TOKENS[device.type]


def random_examples(batch: Batch, vocabulary: int) -> list[Example]:
    """Return rows of random tokens with two answers of one token each: one sequence serves both."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (BATCHES_PER_EPOCH * batch.rows, batch.columns))
    return [Example(tuple(row), ANSWERS, number % 2, f"row {number}") for number, row in enumerate(ids.tolist())]


class Clock:
    """Seconds by what they were spent on; on CUDA those of the device, so that nothing waits because it is timed.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Add the time of the ``with`` block to a name."""
        if self._is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._add(name, time.perf_counter() - started)

    def read(self) -> dict[str, float]:
        """Return the seconds since the last reading, when the device is done."""
        if self._is_cuda:
            torch.cuda.synchronize()
        for name, begin, end in self._events:
            self._add(name, begin.elapsed_time(end) / 1e3)
        found, self._seconds, self._events = self._seconds, {}, []
        return found

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


@dataclass(frozen=True, slots=True)
class _ClockedModel:
    model: SparseModel
    clock: Clock

    @property
    def device(self) -> torch.device:
        return self.model.device

    def write_points(self, thetas: Sequence[Point]) -> None:
        with self.clock.on("write_points"):
            self.model.write_points(thetas)

    def logits(self, batch: TokenBatch) -> Tensor:
        with self.clock.on("forwards"):
            return self.model.logits(batch)


class _ClockedWeight:
    def __init__(self, weight: Weight, clock: Clock) -> None:
        self._weight, self._clock = weight, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._weight, name)

    def decode(self, values: Tensor | None = None, rows: slice = EVERY_ROW) -> Tensor:
        with self._clock.on("dequantize"):
            return self._weight.decode(values, rows)

    def overwrite(self, dense: Tensor, values: Tensor, rows: slice = EVERY_ROW) -> None:
        with self._clock.on("write_sparse"):
            self._weight.overwrite(dense, values, rows)

    def multiply(self, stacked: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        return multiply_decoded(self, stacked, values, bias)


@contextmanager
def _clocked_weights(model: SparseModel, clock: Clock) -> Iterator[None]:
    """Time what decoded weights take inside the ``with`` block; those of a matrix unit are never decoded apart."""
    layers = [layer for layer in _layers(model) if layer.packed.products == "library"]
    weights = [layer.packed for layer in layers]
    for layer, weight in zip(layers, weights, strict=True):
        layer.packed = _ClockedWeight(weight, clock)
    try:
        yield
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.packed = weight


def step_parts(model: SparseModel, batch: Batch, *, drawing: Drawing, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step's parts, and the shares that matter."""
    clock = Clock(model.device)

    def clocked_descend(*arguments: Any) -> Tensor:
        with clock.on("update"):
            return descend(*arguments)

    step = ZoStep(
        model, batch, points=batch.points, drawing=drawing, update=clocked_descend, seen=_ClockedModel(model, clock)
    )
    step()
    clock.read()
    with _clocked_weights(model, clock):
        found = [{"step": seconds_of(step, model.device)} | clock.read() for _ in range(rounds)]
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    medians["draw_z"] = _drawing_seconds(drawing, model.sensitive_count, SMALL_PARTS * rounds)
    medians["write_while_decoding"] = _writing_seconds(model, batch, SMALL_PARTS * rounds) * _passes(model, batch)
    for name in ("dequantize", "write_sparse"):
        medians.setdefault(name, 0.0)
    written = medians["draw_z"] + medians["write_sparse"] + medians["write_while_decoding"]
    beside = statistics.median(one["step"] - one["forwards"] for one in found)
    return {f"{name}_seconds": seconds for name, seconds in medians.items()} | {
        "update_share": (written + medians["write_points"] + medians["update"]) / medians["step"],
        "share_beside_forwards": (written + beside) / medians["step"],
        "dequantize_share": medians["dequantize"] / medians["step"],
    }


def _passes(model: SparseModel, batch: Batch) -> int:
    """Return how often a step decodes each weight."""
    in_products = any(layer.packed.products == "matrix unit" for layer in _layers(model))
    return 2 // batch.points * (-(-batch.tokens // PASS_TOKENS) if in_products else 1)


def _layers(model: SparseModel) -> list[QuantizedSparseLinear]:
    return [module for module in model.network.modules() if isinstance(module, QuantizedSparseLinear)]


def _writing_seconds(model: SparseModel, batch: Batch, rounds: int) -> float:
    """Return what a pass takes longer where sensitive values are written while weights are decoded."""
    with_values = [(layer.packed, model.runtime.values.of(layer.where, 0)) for layer in _layers(model)]
    without = [(without_values(packed), values[:0]) for packed, values in with_values]

    def decode_all(weights: list[tuple[Weight, Tensor]]) -> None:
        for weight, values in weights:
            _decode(weight, values, batch.points)

    def seconds(weights: list[tuple[Weight, Tensor]]) -> float:
        return seconds_of(lambda: decode_all(weights), model.device)

    decode_all(with_values)
    longer = []
    for done in range(rounds):  # the order changes: what runs first in a round finds other caches
        longer.append(seconds(with_values) - seconds(without) if done % 2 else -seconds(without) + seconds(with_values))
    return max(0.0, statistics.median(longer))


def _decode(weight: Weight, values: Tensor, points: int) -> None:
    """Decode a weight; where that happens inside a product only, the product of one token, which costs little more."""
    if weight.products == "library":
        weight.decode(values)
    else:
        token = torch.ones(points, 1, weight.shape[1], dtype=values.dtype, device=values.device)
        weight.multiply(token, values.expand(points, -1), None)


def _drawing_seconds(drawing: Drawing, count: int, rounds: int) -> float:
    host = torch.device("cpu")
    return statistics.median(seconds_of(lambda: drawing(0, 0, 0, torch.empty(count)), host) for _ in range(rounds))
