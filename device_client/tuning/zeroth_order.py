"""Steps made of forward passes alone: what a run does unless it is asked for something else.

    z of t      from (seed, t, query) alone                              shared.perturbation
    g           (L(θ+εz) − L(θ−εz)) / 2ε                                 spsa
    s, tr(H)    signal, and now and then curvature, of the same passes   measurements
    η           from what was measured so far                            schedules, measured_step
    θ ← θ − η·g·z                                                        spsa

Everything that moves θ is on record, so a run is repeated from its journal without a forward pass.
Where a direction finds no difference at all, as it may with a metric, g is 0 and θ does not move along it.
Costs two forward passes per query and step, and one more where curvature is measured.
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
from device_client.tuning.measurements import Sample, curvature
from device_client.tuning.run_findings import forward_passes, measured, sample_of
from device_client.tuning.schedules import StepSizeSchedule
from device_client.tuning.settings import TuneSettings
from device_client.tuning.spsa import Estimate, Perturbations, descend, estimate

BatchT = TypeVar("BatchT")


class LossProblem(Protocol[BatchT]):
    """What is asked of the rows."""

    def batch(self, step: int) -> BatchT:
        """Return the rows of a step, a function of the step alone."""

    def losses(self, thetas: Sequence[Point], batch: BatchT) -> Tensor:
        """Return the loss of each row of a batch at each θ, float64 (points, rows), nats per answer."""


class ZerothOrder(Generic[BatchT]):
    """SPSA along drawn directions.

    Args:
        problem: Batches and losses.
        draw: The run's perturbations.
        schedule: A fresh one; it is fed with what every step measured. It says with which ε.
        settings: The run's.
    """

    def __init__(
        self, problem: LossProblem[BatchT], draw: Perturbations, schedule: StepSizeSchedule, settings: TuneSettings
    ) -> None:
        self._problem, self._draw, self._schedule, self._settings = problem, draw, schedule, settings

    @property
    def is_replayable(self) -> bool:
        """True."""
        return True

    @property
    def snapshot_every(self) -> None:
        """None: replaying is quick."""

    def measure(self, step: int, theta: Tensor) -> StepRecord:
        """Spend the step's forward passes."""
        estimates, trace = self._estimates(step, theta)
        gradients = tuple(found.projected_gradient for found in estimates)
        clean_loss = float(np.float32(statistics.fmean(found.clean_loss for found in estimates)))
        signal = float(np.float32(statistics.fmean(found.signal for found in estimates)))
        size = self._schedule.next(step, Sample.of(gradients, signal, trace, clean_loss))
        flags = StepFlags.CLIPPED if size.is_clipped else StepFlags.NONE
        if not all(map(math.isfinite, gradients)):
            flags |= StepFlags.SKIPPED
        return StepRecord(step, size.lr, clean_loss, flags, gradients, signal, trace)

    def recall(self, record: StepRecord) -> None:
        """Feed the schedule."""
        self._schedule.next(record.step, sample_of(record))

    def move(self, theta: Tensor, record: StepRecord) -> Tensor:
        """Return θ − (η/q) Σ g·z."""
        return descend(theta, self._directions(record.step), record.gradients, record.lr)

    def validated(self, loss: float) -> bool:
        """Ask the schedule's scale."""
        return self._schedule.scale.validated(loss)

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing: all is on record."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def account(self, records: Sequence[StepRecord]) -> dict[str, Any]:
        """Return the passes spent, the median |L₊ − L₋| that has to rise above the noise, and what was measured."""
        sides = 2 if self._settings.directions == "two-sided" else 1
        differences = [
            sides * self._schedule.scale.epsilon * abs(gradient)
            for record in records
            for gradient in record.gradients
            if math.isfinite(gradient)
        ]
        account: dict[str, Any] = {
            "forward_passes": forward_passes(records, self._settings),
            "median_loss_difference": statistics.median(differences) if differences else 0.0,
        }
        if self._settings.metric is not None:
            still = sum(not any(record.gradients) for record in records)
            account |= {"metric": self._settings.metric, "still_steps": still}
        if self._settings.is_step_measured:
            account["measured"] = measured(records, self._settings)
        return account

    def _estimates(self, step: int, theta: Tensor) -> tuple[list[Estimate], float]:
        """Return what each direction says, and tr(H) exact in float32 or NaN."""
        losses, batch, directions = self._problem.losses, self._problem.batch(step), self._directions(step)
        scale = self._schedule.scale
        if not scale.wants_curvature(step):
            return estimate(losses, theta, directions, scale.epsilon, batch, self._settings.directions), math.nan
        # The first order of a curvature cancels between two sides only.
        estimates = estimate(losses, theta, directions, scale.epsilon, batch)
        clean_loss = statistics.fmean(found.clean_loss for found in estimates)
        loss = float(losses([theta], batch).mean())
        return estimates, float(np.float32(curvature(clean_loss, loss, scale.epsilon)))

    def _directions(self, step: int) -> list[Tensor]:
        """Return z of every query: q vectors of k float32 at once."""
        return [self._draw(step, query) for query in range(self._settings.queries)]
