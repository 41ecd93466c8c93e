"""What a run lowers on rows: each goal on models whose answers are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tasks.scoring import check_metric, check_objective
from device_client.tuning.answer_goal import AnswerGoal
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.goals import AccuracyGoal, LossGoal
from shared.errors import DataError
from shared.tasks.examples import Example

A, B = 10, 11
ROWS = [Example((1, 2), ((A,), (B,)), 0, "first"), Example((1, 2, 3), ((A,), (B,)), 1, "second")]
ASKED = [Example((1, *range(length)), (), 0, f"row {length}") for length in (5, 2, 3)]


class TwoPoints:
    """Prefers A at the first point and B at the second, whatever it is asked; its logits may be lost."""

    device = torch.device("cpu")
    answers_alone = False
    is_lost = False

    def __init__(self) -> None:
        self.asked: list[list[Sequence[int]]] = []

    def logits(self, batch: TokenBatch) -> Tensor:
        logits = torch.zeros(2, len(batch.logit_rows), 16)
        logits[0, :, A], logits[1, :, B] = 1.0, 1.0
        if self.is_lost:
            logits[1] = torch.nan
        return logits

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[list[int] | None]]:
        self.asked.append(list(prompts))
        lost = None if self.is_lost else [len(prompts[0])]
        return [[[len(prompt)] * new_tokens for prompt in prompts], [lost for _ in prompts]]


def length_of(_example: Example, answer: str) -> float:
    return float(len(answer.split()))


def answer_goal(model: TwoPoints, grade: object = length_of) -> AnswerGoal:
    def decode(ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    return AnswerGoal(model, decode, grade, metric="checker", answer_tokens=4, objective=None)  # type: ignore[arg-type]


def test_accuracy_costs_minus_one_for_each_row_that_is_right() -> None:
    goal = AccuracyGoal(TwoPoints(), "candidates")
    costs = goal.costs(goal.lay_out(ROWS, 8))
    assert costs.tolist() == [[-1.0, 0.0], [0.0, -1.0]]
    assert costs.dtype == torch.float64


def test_a_row_whose_logits_are_lost_is_not_wrong_but_unknown() -> None:
    model = TwoPoints()
    model.is_lost = True
    goal = AccuracyGoal(model, "candidates")
    costs = goal.costs(goal.lay_out(ROWS, 8))
    assert costs[0].tolist() == [-1.0, 0.0]
    assert costs[1].isnan().all()


def test_an_evaluation_lowers_its_loss_or_raises_its_score() -> None:
    assert Evaluation(0.7, 0.5, 2).cost == 0.7
    assert Evaluation(0.7, 0.5, 2, score=0.5).cost == -0.5
    scored = Evaluation(math.nan, None, 2, score=0.25)
    assert scored.as_json() == {"loss": None, "accuracy": None, "rows": 2, "score": 0.25}
    assert Evaluation.from_json(scored.as_json()).cost == -0.25
    assert "score" not in Evaluation(0.7, 0.5, 2).as_json()


def test_the_loss_is_a_goal_without_a_metric() -> None:
    goal = LossGoal(TwoPoints(), "candidates")
    costs = goal.costs(goal.lay_out(ROWS, 8))
    likely, unlikely = math.log(math.e + 1) - 1, math.log(math.e + 1)
    assert costs.flatten().tolist() == pytest.approx([likely, unlikely, unlikely, likely], rel=1e-6)
    assert goal.metric is None


def test_answers_are_graded_for_each_row_in_its_place_at_each_point() -> None:
    model = TwoPoints()
    goal = answer_goal(model, lambda example, answer: len(example.prompt) + len(answer.split()) / 10)
    costs = goal.costs(goal.lay_out(ASKED, 8))
    assert costs.tolist() == [pytest.approx([-6.4, -3.4, -4.4]), pytest.approx([-6.1, -3.1, -4.1])]
    assert [list(map(len, prompts)) for prompts in model.asked] == [[3, 4, 6]]


def test_micro_batches_hold_as_many_rows_as_may_run_side_by_side() -> None:
    model = TwoPoints()
    goal = answer_goal(model)
    batch = goal.lay_out(ASKED, 2)
    goal.costs(batch)
    assert max(map(len, model.asked)) == 2
    assert batch.widest_tokens == max(
        (last - first) * (len(batch.examples[last - 1].prompt) + 4) for first, last in batch.cuts
    )
    model.asked.clear()
    model.answers_alone = True  # type: ignore[misc]
    goal.costs(goal.lay_out(ASKED, 8))
    assert list(map(len, model.asked)) == [1, 1, 1]


def test_the_same_answer_at_two_points_is_graded_once() -> None:
    class Steady(TwoPoints):
        def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[list[int] | None]]:
            return [[[7] for _ in prompts] for _ in range(2)]

    graded: list[str] = []
    goal = answer_goal(Steady(), lambda example, _answer: graded.append(example.place) or 1.0)
    assert goal.costs(goal.lay_out(ASKED, 8)).tolist() == [[-1.0] * 3] * 2
    assert sorted(graded) == ["row 2", "row 3", "row 5"]


def test_an_answer_that_is_lost_is_unknown() -> None:
    model = TwoPoints()
    model.is_lost = True
    goal = answer_goal(model)
    costs = goal.costs(goal.lay_out(ASKED, 8))
    assert costs[0].tolist() == [-4.0] * 3
    assert costs[1].isnan().all()


def test_accuracy_needs_candidates_and_a_loss_needs_answers() -> None:
    free = Example((1,), ((5, 6),), 0, "a row")
    check_metric(ROWS, "accuracy")
    check_metric([free], "exact-match")
    with pytest.raises(DataError, match="--objective accuracy with rows that have no candidate answers"):
        check_metric([free], "accuracy")
    check_objective(ASKED, None)
    with pytest.raises(DataError, match="--loss vocabulary with row 5, which has no answer"):
        check_objective(ASKED, "vocabulary")
