"""The answers of a finished run: its judged rows before and after, as answers.json keeps them.

rows with a choice     what scores highest, known from evaluations that the run makes anyway; a run that continued
                       after its validations repeats one or both of them
other rows             what the model writes, greedily, for the shown rows alone, one prompt at a time: so a run
                       needs no more memory than for a step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.tuning.answers import (
    HOLDS_COUNTS,
    HOLDS_ROWS,
    BothAnswers,
    confusion_of,
    rows_shown,
    shown_rows,
    tokens_to_write,
)
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.planned_run import PlannedRun
from shared.tasks.examples import Example


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows that a run is judged by, as they were evaluated.

    Attributes:
        part: ``test`` where there are test rows, else ``validation``.
        before: With the bundle's own values.
        after: With the run's best values.
    """

    part: str
    before: Evaluation
    after: Evaluation

    def examples(self, planned: PlannedRun) -> list[Example]:
        """Return the rows."""
        return planned.data.test if self.part == "test" else planned.data.validation


def run_answers(
    planned: PlannedRun,
    model: SparseModel,
    tuned: TunableModel,
    problem: ModelProblem[Any],
    judged: Judged,
    best: Tensor,
    *,
    kept_rows: int,
) -> dict[str, Any]:
    """Return the content of answers.json.

    Args:
        planned: The run.
        model: Of its bundle.
        tuned: What was tuned of it.
        problem: What was minimised, over the same part.
        judged: How the rows were evaluated.
        best: float32 (k,).
        kept_rows: How many rows are kept with their answers.
    """
    examples, decode = judged.examples(planned), model.tokenizer.decode
    indices = rows_shown(examples, kept_rows)
    some = [examples[index] for index in indices]
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    if not any(example.is_free for example in examples):
        # Only a run that begins as its bundle can have made the first evaluation in an earlier process.
        before = judged.before.choices or problem.evaluate(tuned.initial_theta(), examples).choices
        after = judged.after.choices or problem.evaluate(best, examples).choices
    if before and planned.settings.metric in (None, "accuracy"):
        texts = BothAnswers(
            *([decode(examples[i].candidates[chosen[i]]).strip() for i in indices] for chosen in (before, after))
        )
    else:
        with model.as_published():
            own = _written(model, some)
        _write_whole(planned, model, tuned, best)
        texts = BothAnswers(own, _written(model, some))
    return {
        "holds": HOLDS_ROWS if some else HOLDS_COUNTS,
        "part": judged.part,
        "rows": len(examples),
        **confusion_of(examples, before, after, decode),
        "shown": shown_rows(some, texts, decode),
    }


def _write_whole(planned: PlannedRun, model: SparseModel, tuned: TunableModel, theta: Tensor) -> None:
    """Let the whole model compute at a run's θ, which may be that of its upper blocks alone."""
    if planned.part.method.is_beside_weights:
        tuned.write_points([theta])
    else:
        below = model.initial_theta()[: planned.part.blocks.first_value]
        model.write_points([torch.cat([below, theta.to(below.device)])])


def _written(model: SparseModel, examples: Sequence[Example]) -> list[str]:
    tokens, stop_ids = tokens_to_write(examples), model.tokenizer.eos_ids
    return [
        model.tokenizer.decode(
            list(model.generate(list(example.prompt), max_new_tokens=tokens, stop_ids=stop_ids))
        ).strip()
        for example in examples
    ]
