"""What no tuning reaches, on scores that are written down and on a model whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from device_client.tuning.baselines import (
    Room,
    baselines,
    baselines_of_rows,
    calibrated,
    evaluation_of,
    rows_to_show,
    with_rows_before,
)
from device_client.tuning.figures import described
from shared.tasks.examples import Example

BOS, GAP = 1, 7
ANSWERS = ((20,), (21,))


class Encoder:
    bos_ids = [BOS]  # noqa: RUF012
    eos_ids = [2]  # noqa: RUF012
    context_length = 40

    def encode(self, text: str) -> list[int]:
        assert text == "\n\n"
        return [GAP]

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


def row(right: int, *prompt: int, answers: tuple[tuple[int, ...], ...] = ANSWERS) -> Example:
    return Example((BOS, *prompt), answers, right, "line")


def test_a_preference_that_no_row_explains_is_taken_away() -> None:
    """Scores favour answer 0 by ln 4 whatever the row, and the right answer by ln 2: calibrated, the latter is left."""
    favour = torch.tensor([math.log(4), 0.0], dtype=torch.float64)
    rows = [row(0), row(1)] * 4
    scores = torch.stack([favour + torch.tensor([math.log(2) * (r.right == i) for i in (0, 1)]) for r in rows])
    # softmax: 8 : 1 where answer 0 is right and 4 : 2 where answer 1 is; the mean is (8/9 + 4/6) / 2 = 7/9 and 2/9.
    found = evaluation_of(calibrated(scores, scores), rows)
    first, second = 8 / (7 / 9), 1 / (2 / 9)
    third, fourth = 4 / (7 / 9), 2 / (2 / 9)
    expected = -(math.log(first / (first + second)) + math.log(fourth / (third + fourth))) / 2
    assert found.loss == pytest.approx(expected)
    assert found.accuracy == 1.0
    assert evaluation_of(scores, rows).accuracy == 0.5


def test_a_model_that_knows_nothing_of_the_row_comes_down_to_the_number_of_labels() -> None:
    scores = torch.tensor([[5.0, 0.0, -2.0]], dtype=torch.float64).repeat(6, 1)
    rows = [row(index % 3, answers=((20,), (21,), (22,))) for index in range(6)]
    assert evaluation_of(calibrated(scores, scores), rows).loss == pytest.approx(math.log(3))


def test_shown_rows_take_the_answers_in_turn() -> None:
    rows = [row(0, index) for index in range(30, 40)] + [row(1, 50)]
    shown = rows_to_show(rows, 4, seed=3)
    assert sorted(example.right for example in shown) == [0, 0, 0, 1]
    assert rows_to_show(rows, 4, seed=3) == shown != rows_to_show(rows, 4, seed=4)
    assert len(rows_to_show(rows[:2], 4, seed=0)) == 2


def test_answered_rows_stand_before_the_prompt() -> None:
    asked, counts = with_rows_before([row(1, 30, 31)], [row(0, 40), row(1, 41, 42)], Encoder(), 40)
    assert asked[0].prompt == (BOS, 40, 20, GAP, 41, 42, 21, GAP, 30, 31)
    assert (asked[0].candidates, asked[0].right, counts) == (ANSWERS, 1, (2, 2))


def test_as_many_rows_are_shown_as_fit_and_the_nearest_stay() -> None:
    shown = [row(0, 40), row(1, 41, 42)]  # three and four tokens
    asked, counts = with_rows_before([row(0, 30), row(0, *range(30, 36))], shown, Encoder(), 11)
    assert asked[0].prompt == (BOS, 40, 20, GAP, 41, 42, 21, GAP, 30)
    assert asked[1].prompt == (BOS, *range(30, 36))
    assert counts == (0, 2)
    assert described("in_context", {"shown_rows": [0, 2]}) == "in context (0–2 rows)"


def test_longer_sequences_take_the_room_of_several() -> None:
    room = Room(sequences=8, columns=10)
    assert room.columns_for(Encoder()) == 40  # the context, though 80 tokens had room
    assert [room.sequences_of(columns) for columns in (5, 10, 20, 40, 99)] == [8, 8, 4, 2, 1]


def scores_of(examples: Sequence[Example], micro_batch_rows: int) -> Tensor:
    """Answer 1 by ln 3 where the prompt holds an even token last."""
    assert micro_batch_rows >= 1
    return torch.tensor(
        [[0.0, math.log(3) * (example.prompt[-1] % 2 == 0)] for example in examples], dtype=torch.float64
    )


def test_rows_have_both_figures() -> None:
    rows = [row(index % 2, 31 + index) for index in range(8)]
    found = baselines(scores_of, rows, rows, Encoder(), Room(4, 3), seed=0)
    assert set(found) == {"calibrated_zero_shot", "in_context"}
    assert found["calibrated_zero_shot"]["accuracy"] == 1.0
    # 12 tokens at once; a row takes 3 of them, and each shown row 3 more.
    loss = -(math.log(1 / 2) + math.log(3 / 4)) / 2
    assert found["in_context"] == {"loss": pytest.approx(loss), "accuracy": 1.0, "rows": 8, "shown_rows": [3, 3]}


def test_rows_with_answers_of_their_own_have_no_prior() -> None:
    rows = [row(0, 31, answers=((20, index), (21, 22))) for index in range(4)]
    assert set(baselines(scores_of, rows, rows, Encoder(), Room(4, 9), seed=0)) == {"in_context"}


def test_completions_have_no_baselines() -> None:
    rows = [row(0, 31, answers=((20,),))]
    assert baselines(scores_of, rows, rows, Encoder(), Room(4, 3), seed=0) == {}


def test_rows_alone_show_some_of_themselves_before_the_others() -> None:
    rows = [row(index % 2, 31 + index) for index in range(7)]
    found = baselines_of_rows(scores_of(rows, 1), scores_of, rows, Encoder(), Room(4, 3), seed=0)
    assert found["calibrated_zero_shot"]["rows"] == 7
    assert (found["in_context"]["rows"], found["in_context"]["shown_rows"]) == (3, [3, 3])
    few = baselines_of_rows(scores_of(rows[:2], 1), scores_of, rows[:2], Encoder(), Room(4, 3), seed=0)
    assert set(few) == {"calibrated_zero_shot"}
