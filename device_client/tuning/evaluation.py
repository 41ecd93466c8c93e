"""Loss and accuracy of a θ on rows that are not trained on.

    loss      mean over rows of the training objective, nats per answer
    accuracy  share of rows whose right answer scores highest; None where rows offer nothing to choose from

The same rows in the same layout for every θ, so that two evaluations differ by θ alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from device_client.tasks.layout import lay_out
from device_client.tasks.scoring import (
    LogitsModel,
    Objective,
    answer_losses,
    answer_scores,
    count_right,
    scores_by_example,
)
from shared.tasks.examples import Example

ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a θ scores.

    Attributes:
        loss: Nats per answer.
        accuracy: 0 … 1, or None.
        rows: How many rows were scored.
    """

    loss: float
    accuracy: float | None
    rows: int

    def as_json(self) -> dict[str, float | int | None]:
        """Return the fields by name; a loss that is not finite is null."""
        return {
            "loss": self.loss if math.isfinite(self.loss) else None,
            "accuracy": self.accuracy,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Evaluation:
        """Return what ``as_json`` wrote; a null loss comes back as infinity."""
        return cls(math.inf if fields["loss"] is None else fields["loss"], fields["accuracy"], fields["rows"])


def choice_scores(
    model: LogitsModel,
    examples: Sequence[Example],
    *,
    micro_batch_rows: int,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Return what each candidate of each row scores, float64 (rows, most candidates), −inf where a row has fewer.

    Args:
        model: Its θ, one point, is already written.
        examples: At least one, each with a choice.
        micro_batch_rows: Most sequences side by side.
        advance: Receives how many more rows are done.
    """
    most = max(len(example.candidates) for example in examples)
    found = torch.full((len(examples), most), -torch.inf, dtype=torch.float64)
    order = sorted(range(len(examples)), key=lambda index: examples[index].token_count)
    for first in range(0, len(order), ROWS_AT_ONCE):
        indices = order[first : first + ROWS_AT_ONCE]
        batch = lay_out([examples[i] for i in indices], micro_batch_rows=micro_batch_rows, device=model.device)
        (scores,) = scores_by_example(answer_scores(model, batch), batch)
        found[indices, : scores.shape[1]] = scores.detach()
        if advance is not None:
            advance(len(indices))
    return found


def evaluate(
    model: LogitsModel,
    examples: Sequence[Example],
    objective: Objective,
    *,
    micro_batch_rows: int,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Return what the model scores as it stands.

    Args:
        model: Its θ, one point, is already written.
        examples: At least one.
        objective: Which loss.
        micro_batch_rows: Most sequences side by side.
        advance: Told how many more rows are done.
    """
    total, right = 0.0, 0
    has_choice = not any(example.is_free for example in examples)
    # Rows of similar length run together; the order of the sum stays that of the sorted rows.
    ordered = sorted(examples, key=lambda example: example.token_count)
    for first in range(0, len(ordered), ROWS_AT_ONCE):
        batch = lay_out(ordered[first : first + ROWS_AT_ONCE], micro_batch_rows=micro_batch_rows, device=model.device)
        scores = answer_scores(model, batch)
        total += float(answer_losses(scores, batch, objective).sum())
        right += int(count_right(scores, batch)) if has_choice else 0
        if advance is not None:
            advance(len(batch))
    return Evaluation(total / len(examples), right / len(examples) if has_choice else None, len(examples))


def shown_figures(values: str, figures: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a line of a table for people: which values, their loss, their accuracy."""
    loss = "not finite" if figures["loss"] is None else f"{figures['loss']:.4f}"
    accuracy = "–" if figures["accuracy"] is None else f"{figures['accuracy']:.1%}"
    return values, loss, accuracy
