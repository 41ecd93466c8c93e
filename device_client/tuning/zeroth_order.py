"""Steps made of forward passes alone: what a run does unless it is asked for something else.

    z of t      from (seed, t, query) alone                          shared.perturbation
    g           (L(θ+εz) − L(θ−εz)) / 2ε                             spsa
    η           from the g's so far                                  schedules
    θ ← θ − η·g·z                                                    spsa

Everything that moves θ is on record, so a run is repeated from its journal without a forward pass.
Costs two forward passes per query and step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from device_client.model.points import Point
from device_client.tuning.journal import StepFlags, StepRecord
from device_client.tuning.schedules import StepSizeSchedule
from device_client.tuning.spsa import Perturbations, descend, estimate

BatchT = TypeVar("BatchT")


class LossProblem(Protocol[BatchT]):
    """What is asked of the rows."""

    def batch(self, step: int) -> BatchT:
        """Return the rows of a step, a function of the step alone."""

    def losses(self, thetas: Sequence[Point], batch: BatchT) -> list[float]:
        """Return the mean loss of a batch at each θ, nats per answer."""


class ZerothOrder(Generic[BatchT]):
    """SPSA along drawn directions.

    Args:
        problem: Batches and losses.
        draw: The run's perturbations.
        schedule: A fresh one; it is fed with every step's g's.
        epsilon: ε.
        queries: Directions per step.
    """

    def __init__(
        self,
        problem: LossProblem[BatchT],
        draw: Perturbations,
        schedule: StepSizeSchedule,
        epsilon: float,
        queries: int = 1,
    ) -> None:
        self._problem, self._draw, self._schedule = problem, draw, schedule
        self._epsilon, self._queries = epsilon, queries

    @property
    def is_replayable(self) -> bool:
        """True."""
        return True

    @property
    def snapshot_every(self) -> None:
        """None: replaying is quick."""

    def measure(self, step: int, theta: Tensor) -> StepRecord:
        """Spend two forward passes per query."""
        found = estimate(self._problem.losses, theta, self._directions(step), self._epsilon, self._problem.batch(step))
        gradients = tuple(each.projected_gradient for each in found)
        size = self._schedule.next(step, gradients)
        flags = StepFlags.CLIPPED if size.is_clipped else StepFlags.NONE
        if not all(map(math.isfinite, gradients)):
            flags |= StepFlags.SKIPPED
        clean_loss = float(np.float32(statistics.fmean(each.clean_loss for each in found)))
        return StepRecord(step, size.lr, clean_loss, flags, gradients)

    def recall(self, record: StepRecord) -> None:
        """Feed the schedule."""
        self._schedule.next(record.step, record.gradients)

    def move(self, theta: Tensor, record: StepRecord) -> Tensor:
        """Return θ − (η/q) Σ g·z."""
        return descend(theta, self._directions(record.step), record.gradients, record.lr)

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing: all is on record."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def account(self, records: Sequence[StepRecord]) -> dict[str, Any]:
        """Return the passes spent, and the median |L₊ − L₋| that the estimate has to rise above the noise with."""
        differences = [
            2 * self._epsilon * abs(gradient)
            for record in records
            for gradient in record.gradients
            if math.isfinite(gradient)
        ]
        return {
            "forward_passes": 2 * self._queries * len(records),
            "median_loss_difference": statistics.median(differences) if differences else 0.0,
        }

    def _directions(self, step: int) -> list[Tensor]:
        """Return z of every query: q vectors of k float32 at once."""
        return [self._draw(step, query) for query in range(self._queries)]
