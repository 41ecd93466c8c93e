"""Which goal serves which objective: the one place that knows all of them."""

from __future__ import annotations

from typing import Any

from device_client.model.sparse_model import SparseModel
from device_client.model.tunable_model import TunableModel
from device_client.model.upper_blocks import UpperBlocks
from device_client.tasks.answer_text import exact_match, f1
from device_client.tasks.checker import Checker
from device_client.tasks.scoring import Objective
from device_client.tuning.answer_goal import AnswerGoal, Grade
from device_client.tuning.goals import AccuracyGoal, Goal, LossGoal
from device_client.tuning.settings import ANSWER_TOKENS, Metric
from shared.model.tokenizer import BundleTokenizer


def make_goal(
    model: TunableModel,
    tokenizer: BundleTokenizer,
    objective: Objective | None,
    metric: Metric | None,
    answer_tokens: int | None = None,
    checker: Checker | None = None,
) -> Goal[Any]:
    """Return what is lowered.

    Args:
        model: What is tuned or evaluated.
        tokenizer: The model's.
        objective: The loss: lowered, or reported beside the metric; None where rows have no answer.
        metric: What is raised instead.
        answer_tokens: Most tokens of the model's answers.
        checker: Grades them, where the metric is its number.
    """
    if metric is None and objective is not None:
        return LossGoal(model, objective)
    if metric == "accuracy" and objective is not None:
        return AccuracyGoal(model, objective)
    grades: dict[Metric | None, Grade] = {
        "exact-match": lambda example, answer: exact_match(answer, tokenizer.decode(example.candidates[example.right])),
        "f1": lambda example, answer: f1(answer, tokenizer.decode(example.candidates[example.right])),
    }
    if checker is not None:
        grades["checker"] = lambda example, answer: checker(example, tokenizer.decode(example.prompt), answer)
    if metric is None or metric not in grades or not isinstance(model, SparseModel | UpperBlocks):
        raise ValueError(f"objective {objective}, metric {metric}: nothing writes answers, or says what they are worth")
    return AnswerGoal(
        model,
        tokenizer.decode,
        grades[metric],
        metric=metric,
        answer_tokens=answer_tokens or ANSWER_TOKENS,
        objective=objective,
    )
