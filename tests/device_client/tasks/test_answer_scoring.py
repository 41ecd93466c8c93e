"""Scores and losses against hand-worked figures, and the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tasks.scoring import (
    AnswerBatch,
    ScoredSequence,
    answer_losses,
    answer_scores,
    check_objective,
    count_right,
    lay_out,
    token_batch,
)
from shared.errors import DataError
from shared.tasks.examples import Example

VOCABULARY = 11


class PrefixModel:
    """Logits that depend on every token of the prefix: row sum(prefix) mod 11 of a fixed table."""

    def __init__(self) -> None:
        rows = np.random.Generator(np.random.Philox(3)).standard_normal((VOCABULARY, VOCABULARY))
        self.table = torch.from_numpy(rows).float()
        self.shapes: list[tuple[int, int]] = []

    def logits(self, batch: TokenBatch) -> Tensor:
        self.shapes.append(batch.shape)
        state = (batch.input_ids * batch.attention_mask).cumsum(dim=1) % VOCABULARY
        return self.table[state[batch.logit_rows, batch.logit_columns]]

    def log_probability(self, prefix: tuple[int, ...], token: int) -> float:
        row = self.table[sum(prefix) % VOCABULARY].double()
        return float(row[token] - torch.logsumexp(row, 0))


def single_token_examples() -> list[Example]:
    return [
        Example((1, 4, 2), ((5,), (6,)), 0, "line 1"),
        Example((1,), ((5,), (6,)), 1, "line 2"),
        Example((1, 9, 9, 9, 3), ((7,), (8,), (9,)), 2, "line 3"),
    ]


def several_token_examples() -> list[Example]:
    return [
        Example((1, 4), ((5, 6), (7,), (8, 9, 10)), 2, "line 1"),
        Example((1, 2, 3), ((4, 4), (4, 5)), 0, "line 2"),
    ]


def by_hand(model: PrefixModel, examples: list[Example]) -> list[list[float]]:
    return [
        [
            sum(model.log_probability(e.prompt + c[:i], token) for i, token in enumerate(c)) / len(c)
            for c in e.candidates
        ]
        for e in examples
    ]


@pytest.mark.parametrize("examples", [single_token_examples(), several_token_examples()])
@pytest.mark.parametrize("micro_batch_rows", [1, 2, 100])
def test_a_score_is_the_mean_log_probability_of_the_answers_tokens(
    examples: list[Example], micro_batch_rows: int
) -> None:
    model = PrefixModel()
    scores = answer_scores(model, lay_out(examples, micro_batch_rows=micro_batch_rows))
    assert scores.tolist() == pytest.approx([s for row in by_hand(model, examples) for s in row], abs=1e-6)


def test_one_sequence_serves_all_single_token_candidates() -> None:
    model = PrefixModel()
    answer_scores(model, lay_out(single_token_examples(), micro_batch_rows=100))
    assert model.shapes == [(3, 5)]


def test_candidate_scoring_equals_the_label_token_path() -> None:
    """One sequence per candidate, as for long answers, gives what one position's logits give."""
    model, examples = PrefixModel(), single_token_examples()
    answers = [(e, c) for e in examples for c in e.candidates]
    sequences = tuple(
        ScoredSequence(e.prompt, (len(e.prompt) - 1,), ((0, c[0], index),)) for index, (e, c) in enumerate(answers)
    )
    one_per_candidate = AnswerBatch(tuple(examples), sequences, ((0, len(sequences)),), (0, 2, 4), is_right_only=False)
    expected = answer_scores(model, one_per_candidate)
    assert torch.equal(answer_scores(model, lay_out(examples, micro_batch_rows=100)), expected)


def test_the_candidates_loss_is_cross_entropy_over_the_candidates() -> None:
    model, examples = PrefixModel(), several_token_examples()
    batch = lay_out(examples, micro_batch_rows=2)
    expected = [
        math.log(sum(math.exp(score) for score in scores)) - scores[e.right]
        for e, scores in zip(examples, by_hand(model, examples), strict=True)
    ]
    assert answer_losses(answer_scores(model, batch), batch, "candidates").tolist() == pytest.approx(expected, abs=1e-6)


def test_the_vocabulary_loss_needs_only_the_right_answers() -> None:
    model, examples = PrefixModel(), several_token_examples()
    batch = lay_out(examples, micro_batch_rows=100, right_only=True)
    expected = [-scores[e.right] for e, scores in zip(examples, by_hand(model, examples), strict=True)]
    assert answer_losses(answer_scores(model, batch), batch, "vocabulary").tolist() == pytest.approx(expected, abs=1e-6)
    assert model.shapes == [(2, 4)]


def test_micro_batched_equals_whole_batch_loss() -> None:
    model, examples = PrefixModel(), several_token_examples() * 4
    whole, cut = (lay_out(examples, micro_batch_rows=rows) for rows in (1000, 3))
    # Here the model rounds alike for any padding, so equality is exact but for the order of float64 additions.
    losses = [float(answer_losses(answer_scores(model, b), b, "candidates").mean()) for b in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-14)


def test_sequences_of_similar_length_run_together() -> None:
    examples = [Example((1,) * length, ((5,), (6,)), 0, "line") for length in (9, 2, 8, 1)]
    model = PrefixModel()
    answer_scores(model, lay_out(examples, micro_batch_rows=2))
    assert model.shapes == [(2, 2), (2, 9)]


def test_the_highest_score_is_the_guess() -> None:
    batch = lay_out(single_token_examples(), micro_batch_rows=9)
    assert count_right(torch.tensor([0.0, -1, 0, -1, -3, -2, -1]).double(), batch) == 2


def test_right_only_scores_cannot_be_compared() -> None:
    batch = lay_out(several_token_examples(), micro_batch_rows=9, right_only=True)
    with pytest.raises(DataError, match="cannot be compared"):
        count_right(answer_scores(PrefixModel(), batch), batch)


def test_free_answers_have_no_candidates_loss() -> None:
    free = [Example((1,), ((5, 6),), 0, "line 1")]
    with pytest.raises(DataError, match="--loss vocabulary"):
        check_objective(free, "candidates")
    check_objective(free, "vocabulary")
    check_objective(several_token_examples(), "candidates")


def test_scores_are_differentiable_where_the_logits_are() -> None:
    class Differentiable(PrefixModel):
        def __init__(self) -> None:
            super().__init__()
            self.table.requires_grad_(True)

    model = Differentiable()
    batch = lay_out(single_token_examples(), micro_batch_rows=2)
    answer_losses(answer_scores(model, batch), batch, "candidates").mean().backward()  # type: ignore[no-untyped-call]
    assert model.table.grad is not None
    assert float(model.table.grad.abs().sum()) > 0


def test_rows_are_padded_on_the_right() -> None:
    batch = token_batch([ScoredSequence((1, 2, 3), (1, 2), ()), ScoredSequence((4,), (0,), ())])
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.logit_rows.tolist(), batch.logit_columns.tolist()) == ([0, 0, 1], [1, 2, 0])
