"""What a run lowers on rows: the loss of their answers, or the share of rows that a metric calls wrong.

    loss        −log p of the answer, nats                                                          tasks.scoring
    accuracy    −1 where the right candidate scores highest, else 0                                 tasks.scoring
    answers     −what a grade says of the text that the model writes                                answer_goal

A cost is lower where θ is better, so a metric comes with its sign turned; a constant beside it would change no
difference of two costs. Metrics are steps of θ: where no row's answer changes between θ + ε·z and θ − ε·z their
difference is exactly 0, and a step along that z does not move θ.
Knows nothing about batches of a run, its files or its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from device_client.tasks.layout import AnswerBatch, lay_out
from device_client.tasks.scoring import LogitsModel, Objective, answer_losses, answer_scores, is_right
from device_client.tuning.evaluation import Evaluation, evaluate
from device_client.tuning.settings import Metric
from shared.tasks.examples import Example


class StepBatch(Protocol):
    """Rows of a step, ready to run as often as wanted."""

    @property
    def widest_tokens(self) -> int:
        """Tokens of the largest micro-batch, padding included."""


BatchT = TypeVar("BatchT", bound=StepBatch)
Advance = Callable[[int], None]
"""Receives how many more rows are done."""


class Goal(Protocol[BatchT]):
    """What a run lowers. Its model stands at the points that were written last."""

    @property
    def metric(self) -> Metric | None:
        """What is raised; None where the loss is lowered."""

    def lay_out(self, examples: Sequence[Example], micro_batch_rows: int) -> BatchT:
        """Return the rows, ready to run with at most so many sequences side by side."""

    def costs(self, batch: BatchT) -> Tensor:
        """Return the cost of each row at each point, float64 (points, rows); NaN where logits are not finite."""

    def evaluate(
        self, examples: Sequence[Example], micro_batch_rows: int, advance: Advance | None = None
    ) -> Evaluation:
        """Return what the rows come to at the one point that is written."""


@dataclass(frozen=True, slots=True)
class LossGoal:
    """The loss of the rows' answers.

    Attributes:
        model: Computes it.
        objective: Which loss.
    """

    model: LogitsModel
    objective: Objective

    @property
    def metric(self) -> None:
        """None."""
        return None

    def lay_out(self, examples: Sequence[Example], micro_batch_rows: int) -> AnswerBatch:
        """Return the rows laid out for the model: right answers alone where the others do not matter."""
        right_only = self.objective == "vocabulary"
        return lay_out(
            examples, micro_batch_rows=micro_batch_rows, right_only=right_only, device=self.model.device
        )  # fmt: skip

    def costs(self, batch: AnswerBatch) -> Tensor:
        """Return each row's loss, nats per answer."""
        return answer_losses(answer_scores(self.model, batch), batch, self.objective)

    def evaluate(
        self, examples: Sequence[Example], micro_batch_rows: int, advance: Advance | None = None
    ) -> Evaluation:
        """Return loss and accuracy."""
        return evaluate(self.model, examples, self.objective, micro_batch_rows=micro_batch_rows, advance=advance)


@dataclass(frozen=True, slots=True)
class AccuracyGoal:
    """The share of rows whose right candidate scores highest.

    Attributes:
        model: Scores the candidates.
        objective: The loss that is reported beside it.
    """

    model: LogitsModel
    objective: Objective

    @property
    def metric(self) -> Metric:
        """Accuracy."""
        return "accuracy"

    def lay_out(self, examples: Sequence[Example], micro_batch_rows: int) -> AnswerBatch:
        """Return the rows with all their candidates laid out for the model."""
        return lay_out(examples, micro_batch_rows=micro_batch_rows, device=self.model.device)

    def costs(self, batch: AnswerBatch) -> Tensor:
        """Return −1 for each row that is right, 0 for each that is wrong."""
        scores = answer_scores(self.model, batch)
        right = -is_right(scores, batch).double()
        is_lost = answer_losses(scores, batch, "candidates").isnan()  # any of a row's scores is NaN
        return torch.where(is_lost, torch.nan, right)

    def evaluate(
        self, examples: Sequence[Example], micro_batch_rows: int, advance: Advance | None = None
    ) -> Evaluation:
        """Return loss and accuracy, chosen by accuracy."""
        found = evaluate(self.model, examples, self.objective, micro_batch_rows=micro_batch_rows, advance=advance)
        return replace(found, score=found.accuracy)
