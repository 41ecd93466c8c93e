"""A bundle's model and a task's rows as the problem that the loop tunes.

Every θ is written absolutely and sees the same layout: both signs of a step run identical tokens, padding and
micro-batches. Where memory allows, several of them run side by side, so that each weight is decoded once for all of
them; their costs are the same bits either way. What is lowered on a batch is the goal's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol

import torch
from torch import Tensor

from device_client.model.points import Point
from device_client.planning.workload import PAIRED_UP_TO_TOKENS
from device_client.tasks.scoring import LogitsModel
from device_client.tuning.batches import BatchIndices
from device_client.tuning.evaluation import Evaluation, choice_scores
from device_client.tuning.goals import BatchT, Goal
from device_client.tuning.smaller_batches import MicroBatch
from shared.tasks.examples import Example


class PointsModel(LogitsModel, Protocol):
    """A model whose sensitive values can be set, at several points side by side."""

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (k,), from now on."""


class ModelProblem(Generic[BatchT]):
    """What the loop needs of a model, training rows and validation rows.

    Args:
        model: Its points are written here.
        training: At least one example.
        validation: At least one example.
        goal: What is lowered, with the same model.
        indices: Which training rows each step sees.
        micro_batch_rows: Sequences side by side; ``shrink`` halves it.
        points_at_once: θ's side by side; ``shrink`` first makes it one, which changes no bit of any loss.
    """

    def __init__(
        self,
        model: PointsModel,
        training: Sequence[Example],
        validation: Sequence[Example],
        goal: Goal[BatchT],
        indices: BatchIndices,
        micro_batch_rows: int,
        points_at_once: int = 1,
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._goal, self._indices = goal, indices
        self._micro_batch = MicroBatch(micro_batch_rows)
        self._points_at_once = points_at_once

    @property
    def micro_batch_rows(self) -> int:
        """Sequences side by side."""
        return self._micro_batch.rows

    @property
    def points_at_once(self) -> int:
        """θ's side by side."""
        return self._points_at_once

    def batch(self, step: int) -> BatchT:
        """Return the rows of a step, laid out for the model."""
        return self._goal.lay_out([self._training[index] for index in self._indices(step)], self.micro_batch_rows)

    def losses(self, thetas: Sequence[Point], batch: BatchT) -> Tensor:
        """Return the cost of each row of a batch at each θ, float64 (points, rows)."""
        found: list[Tensor] = []
        is_worth_while = batch.widest_tokens <= PAIRED_UP_TO_TOKENS[self._model.device.type]
        at_once = self._points_at_once if is_worth_while else 1
        for begin in range(0, len(thetas), at_once):
            self._model.write_points(thetas[begin : begin + at_once])
            found.append(self._goal.costs(batch))
        return torch.cat(found)

    def validate(self, theta: Tensor) -> Evaluation:
        """Return what θ scores on the validation rows."""
        return self.evaluate(theta, self._validation)

    def evaluate(self, theta: Tensor, examples: Sequence[Example]) -> Evaluation:
        """Return what θ scores on any rows."""
        self._model.write_points([theta])
        return self._goal.evaluate(examples, self.micro_batch_rows)

    def choice_scores(self, theta: Tensor, examples: Sequence[Example], micro_batch_rows: int) -> Tensor:
        """Return what each candidate of each row scores at θ, float64 (rows, most candidates)."""
        self._model.write_points([theta])
        return choice_scores(self._model, examples, micro_batch_rows=min(micro_batch_rows, self.micro_batch_rows))

    def shrink(self) -> bool:
        """Run one θ at a time, then half as many sequences side by side; False where both are one already."""
        if self._points_at_once > 1:
            self._points_at_once = 1
            return True
        return self._micro_batch.shrink()
