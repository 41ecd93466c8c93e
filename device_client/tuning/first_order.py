"""Steps along the exact gradient of the same values: for models and losses that have one, where its memory fits.

    ∇ = ∂L/∂θ of the step's rows                                    answer_gradient
    η = lr · decay(t)
    θ ← Adam(θ, ∇, η)                                               adam

A record holds L, η and ‖∇‖: an account, from which θ does not follow. So snapshots are taken every few steps, with
Adam's moments in them, and the steps after the last one are measured again. Costs as much as three forward passes a
step: one, one more of each block, and the way back through the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from device_client.tuning.adam import Adam
from device_client.tuning.journal import StepFlags, StepRecord
from device_client.tuning.settings import TuneSettings

BatchT = TypeVar("BatchT")
CovariantBatch = TypeVar("CovariantBatch", covariant=True)

DEFAULT_LR = 2e-3
SNAPSHOT_EVERY = 10
"""Steps: what a kill may cost, against three vectors of k float32 written to the disk."""

PASSES_PER_STEP = 3


class BatchProblem(Protocol[CovariantBatch]):
    """What is asked of the rows."""

    def batch(self, step: int) -> CovariantBatch:
        """Return the rows of a step, a function of the step alone."""


LossAndGradient = Callable[[Tensor, BatchT], tuple[float, Tensor]]
"""(θ, batch) → mean loss, nats per answer, and its gradient, float32 (k,); the same bits for the same two."""


class FirstOrder(Generic[BatchT]):
    """Adam along exact gradients.

    Args:
        problem: Batches.
        loss_and_gradient: Of a batch.
        adam: Fresh.
        settings: The run's; where it names no η, ``DEFAULT_LR`` is what decays.
    """

    def __init__(
        self,
        problem: BatchProblem[BatchT],
        loss_and_gradient: LossAndGradient[BatchT],
        adam: Adam,
        settings: TuneSettings,
    ) -> None:
        self._problem, self._loss_and_gradient, self._adam = problem, loss_and_gradient, adam
        self._settings = settings
        self._lr = DEFAULT_LR if settings.lr is None else settings.lr
        self._gradient: Tensor | None = None

    @property
    def is_replayable(self) -> bool:
        """False."""
        return False

    @property
    def snapshot_every(self) -> int:
        """``SNAPSHOT_EVERY``."""
        return SNAPSHOT_EVERY

    def measure(self, step: int, theta: Tensor) -> StepRecord:
        """Spend a forward and a backward pass; the gradient is kept for ``move``."""
        self._gradient = None
        loss, gradient = self._loss_and_gradient(theta, self._problem.batch(step))
        norm = float(torch.linalg.vector_norm(gradient))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return StepRecord(step, 0.0, float(np.float32(loss)), StepFlags.SKIPPED, (math.nan,))
        self._gradient = gradient
        lr = self._lr * self._settings.decay_at(step)
        return StepRecord(
            step, float(np.float32(lr)), float(np.float32(loss)), StepFlags.NONE, (float(np.float32(norm)),)
        )

    def recall(self, record: StepRecord) -> None:
        """Do nothing: what the step came to is in the snapshot."""

    def move(self, theta: Tensor, record: StepRecord) -> Tensor:
        """Return θ after Adam's step; θ itself where the step was skipped."""
        gradient, self._gradient = self._gradient, None
        return theta if gradient is None else self._adam.descend(theta, gradient, record.lr)

    def validated(self, _loss: float) -> bool:
        """Return False: Adam goes on from where it is."""
        return False

    def state(self) -> Mapping[str, Tensor]:
        """Return Adam's."""
        return self._adam.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what ``state`` returned.

        Raises:
            IntegrityError: Something else is kept there.
        """
        self._adam.restore(state)

    def account(self, records: Sequence[StepRecord]) -> dict[str, Any]:
        """Return what the steps cost, in forward passes."""
        return {"forward_passes": PASSES_PER_STEP * len(records)}
