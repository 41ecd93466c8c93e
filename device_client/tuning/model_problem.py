"""A bundle's model and a task's rows as the problem that the loop tunes.

Every θ is written absolutely and sees the same layout: both signs of a step run identical tokens, padding and
micro-batches. Where memory allows, several of them run side by side, so that each weight is decoded once for all of
them; their losses are the same bits either way. The loss of a batch is the mean over its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from device_client.model.points import Point
from device_client.planning.workload import PAIRED_UP_TO_TOKENS
from device_client.tasks.layout import AnswerBatch, lay_out
from device_client.tasks.scoring import LogitsModel, Objective, answer_losses, answer_scores
from device_client.tuning.batches import BatchIndices
from device_client.tuning.evaluation import Evaluation, choice_scores, evaluate
from device_client.tuning.smaller_batches import MicroBatch
from shared.tasks.examples import Example


class PointsModel(LogitsModel, Protocol):
    """A model whose sensitive values can be set, at several points side by side."""

    def write_points(self, thetas: Sequence[Point]) -> None:
        """Evaluate at every θ of ``thetas``, float32 (k,), from now on."""


class ModelProblem:
    """What the loop needs of a model, training rows and validation rows.

    Args:
        model: Computes the losses.
        training: At least one example.
        validation: At least one example.
        objective: Which loss.
        indices: Which training rows each step sees.
        micro_batch_rows: Sequences side by side; ``shrink`` halves it.
        points_at_once: θ's side by side; ``shrink`` first makes it one, which changes no bit of any loss.
    """

    def __init__(
        self,
        model: PointsModel,
        training: Sequence[Example],
        validation: Sequence[Example],
        objective: Objective,
        indices: BatchIndices,
        micro_batch_rows: int,
        points_at_once: int = 1,
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._objective: Objective = objective
        self._indices = indices
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

    def batch(self, step: int) -> AnswerBatch:
        """Return the rows of a step, laid out for the model."""
        examples = [self._training[index] for index in self._indices(step)]
        return lay_out(
            examples,
            micro_batch_rows=self.micro_batch_rows,
            right_only=self._objective == "vocabulary",
            device=self._model.device,
        )

    def losses(self, thetas: Sequence[Point], batch: AnswerBatch) -> Tensor:
        """Return the loss of each row of a batch at each θ, float64 (points, rows), nats per answer."""
        found: list[Tensor] = []
        at_once = self._points_worth_while(batch)
        for begin in range(0, len(thetas), at_once):
            self._model.write_points(thetas[begin : begin + at_once])
            scores = answer_scores(self._model, batch)
            found.append(answer_losses(scores, batch, self._objective))
        return torch.cat(found)

    def _points_worth_while(self, batch: AnswerBatch) -> int:
        tokens = max(rows * columns for rows, columns in (bucket.tokens.shape for bucket in batch.buckets))
        return self._points_at_once if tokens <= PAIRED_UP_TO_TOKENS[self._model.device.type] else 1

    def validate(self, theta: Tensor) -> Evaluation:
        """Return what θ scores on the validation rows."""
        return self.evaluate(theta, self._validation)

    def evaluate(self, theta: Tensor, examples: Sequence[Example]) -> Evaluation:
        """Return what θ scores on any rows."""
        self._model.write_points([theta])
        return evaluate(self._model, examples, self._objective, micro_batch_rows=self.micro_batch_rows)

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
