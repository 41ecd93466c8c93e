"""What a model scores on rows, against a model whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tuning.evaluation import Evaluation, choice_scores, evaluate
from shared.tasks.examples import Example

VOCABULARY = 16


class LengthModel:
    """Gives token 1 three times the probability of any other behind an odd number of tokens; else all are equal."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.most_rows = 0

    def logits(self, batch: TokenBatch) -> Tensor:
        self.most_rows = max(self.most_rows, batch.shape[0])
        logits = torch.zeros(1, len(batch.logit_rows), VOCABULARY)
        logits[0, :, 1] = (batch.logit_columns % 2 == 0) * math.log(3)
        return logits


def labelled(length: int, right: int) -> Example:
    return Example((9,) * length, ((2,), (1,)), right, "line")


ROWS = [labelled(1 + index % 7, right=index % 2) for index in range(150)]
"""Prompts of 1 to 7 tokens, 22 of 1 to 3 each and 21 of 4 to 7 each; either answer is right in turn."""


def expected_loss_and_right() -> tuple[float, int]:
    """Odd prompts: p = ¾ for answer 1, ¼ for answer 0. Even prompts: ½ each, and the first of equals is the guess."""
    total, right = 0.0, 0
    for row in ROWS:
        is_odd = len(row.prompt) % 2 == 1
        total -= math.log((0.75 if row.right == 1 else 0.25) if is_odd else 0.5)
        right += row.right == (1 if is_odd else 0)
    return total / len(ROWS), right


@pytest.mark.parametrize("micro_batch_rows", [1, 7, 64])
def test_rows_of_any_micro_batch_give_the_mean_loss_and_the_share_of_right_guesses(micro_batch_rows: int) -> None:
    model = LengthModel()
    found = evaluate(model, ROWS, "candidates", micro_batch_rows=micro_batch_rows)
    loss, right = expected_loss_and_right()
    # The logits are float32.
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert (found.accuracy, found.rows) == (right / 150, 150)
    assert model.most_rows == micro_batch_rows


@pytest.mark.parametrize("micro_batch_rows", [1, 64])
def test_scores_stand_in_the_order_of_the_rows(micro_batch_rows: int) -> None:
    rows = [*ROWS, Example((9,) * 2, ((2,), (1,), (3,)), 0, "line")]
    scores = choice_scores(LengthModel(), rows, micro_batch_rows=micro_batch_rows)
    assert scores.shape == (151, 3)
    for example, found in zip(rows, scores.tolist(), strict=True):
        is_odd = len(example.prompt) % 2 == 1
        assert found[1] - found[0] == pytest.approx(math.log(3) * is_odd, abs=1e-6)
        assert (found[2] == -math.inf) == (len(example.candidates) == 2)


def test_completions_have_a_loss_and_no_accuracy() -> None:
    """Behind 1 token the model is sure by 3 : 15 others, behind 2 all 16 are equal."""
    rows = [Example((9,), ((1, 5),), 0, "line 1")]
    found = evaluate(LengthModel(), rows, "vocabulary", micro_batch_rows=4)
    assert found.loss == pytest.approx(-(math.log(3 / 18) + math.log(1 / 16)) / 2, abs=1e-6)
    assert found.accuracy is None


def test_progress_adds_up_to_all_rows() -> None:
    told: list[int] = []
    evaluate(LengthModel(), ROWS, "candidates", micro_batch_rows=16, advance=told.append)
    assert told == [64, 64, 22]


@pytest.mark.parametrize("loss", [0.25, math.inf])
def test_an_evaluation_comes_back_from_json_as_it_went(loss: float) -> None:
    was = Evaluation(loss, None, 3)
    assert was.as_json()["loss"] == (None if loss == math.inf else 0.25)
    assert Evaluation.from_json(was.as_json()) == was
