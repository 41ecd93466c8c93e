"""A bundle's model and a task's rows as the problem that the loop tunes.

Each loss writes θ absolutely and runs the same layout: both signs of a step see identical tokens, padding and
micro-batches. The loss of a batch is the mean over its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from device_client.tasks.layout import AnswerBatch, lay_out
from device_client.tasks.scoring import LogitsModel, Objective, answer_losses, answer_scores
from device_client.tuning.batches import BatchIndices
from device_client.tuning.evaluation import Evaluation, evaluate
from device_client.tuning.smaller_batches import MicroBatch
from shared.tasks.examples import Example


class ThetaModel(LogitsModel, Protocol):
    """A model whose sensitive values can be set."""

    def write_theta(self, theta: Tensor) -> None:
        """Make the sensitive weights equal ``theta``, float32 (k,)."""


class ModelProblem:
    """What the loop needs of a model, training rows and validation rows.

    Args:
        model: Computes the losses.
        training: At least one example.
        validation: At least one example.
        objective: Which loss.
        indices: Which training rows each step sees.
        micro_batch_rows: Sequences side by side; ``shrink`` halves it.
    """

    def __init__(
        self,
        model: ThetaModel,
        training: Sequence[Example],
        validation: Sequence[Example],
        objective: Objective,
        indices: BatchIndices,
        micro_batch_rows: int,
    ) -> None:
        self._model, self._training, self._validation = model, training, validation
        self._objective: Objective = objective
        self._indices = indices
        self._micro_batch = MicroBatch(micro_batch_rows)

    @property
    def micro_batch_rows(self) -> int:
        """Sequences side by side."""
        return self._micro_batch.rows

    def batch(self, step: int) -> AnswerBatch:
        """Return the rows of a step, laid out for the model."""
        examples = [self._training[index] for index in self._indices(step)]
        return lay_out(
            examples,
            micro_batch_rows=self.micro_batch_rows,
            right_only=self._objective == "vocabulary",
            device=self._model.device,
        )

    def loss(self, theta: Tensor, batch: AnswerBatch) -> float:
        """Return the mean loss of a batch at θ, nats per answer."""
        self._model.write_theta(theta)
        return float(answer_losses(answer_scores(self._model, batch), batch, self._objective).mean())

    def validate(self, theta: Tensor) -> Evaluation:
        """Return what θ scores on the validation rows."""
        return self.evaluate(theta, self._validation)

    def evaluate(self, theta: Tensor, examples: Sequence[Example]) -> Evaluation:
        """Return what θ scores on any rows."""
        self._model.write_theta(theta)
        return evaluate(self._model, examples, self._objective, micro_batch_rows=self.micro_batch_rows)

    def shrink(self) -> bool:
        """Halve the number of sequences side by side; False where it is one already."""
        return self._micro_batch.shrink()
