"""Scores and losses against hand-worked figures, and the laws they obey."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor

from device_client.model.token_batch import TokenBatch
from device_client.tasks.layout import ScoredSequence, lay_out, lay_out_sequences
from device_client.tasks.scoring import (
    Objective,
    answer_losses,
    answer_scores,
    check_objective,
    is_right,
    target_log_probabilities,
)
from shared.errors import DataError
from shared.tasks.examples import Example

VOCABULARY = 11


class PrefixModel:
    """Logits that depend on every token of the prefix: row sum(prefix) mod 11 of a fixed table of each point."""

    device = torch.device("cpu")

    def __init__(self, points: int = 1) -> None:
        values = np.random.Generator(np.random.Philox(3)).standard_normal((points, VOCABULARY, VOCABULARY))
        self.tables = torch.from_numpy(values).float()
        self.shapes: list[tuple[int, int]] = []

    def logits(self, batch: TokenBatch) -> Tensor:
        self.shapes.append(batch.shape)
        state = (batch.input_ids * batch.attention_mask).cumsum(dim=1) % VOCABULARY
        return self.tables[:, state[batch.logit_rows, batch.logit_columns]]

    def at(self, point: int) -> PrefixModel:
        """Return the model of one point."""
        alone = PrefixModel()
        alone.tables = self.tables[point : point + 1]
        return alone

    def log_probability(self, prefix: tuple[int, ...], token: int) -> float:
        row = self.tables[0, sum(prefix) % VOCABULARY].double()
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
    assert scores.tolist() == [pytest.approx([s for row in by_hand(model, examples) for s in row], abs=1e-6)]


def test_one_sequence_serves_all_single_token_candidates() -> None:
    model = PrefixModel()
    answer_scores(model, lay_out(single_token_examples(), micro_batch_rows=100))
    assert model.shapes == [(3, 5)]


def test_candidate_scoring_equals_the_label_token_path() -> None:
    """One sequence per candidate, as for long answers, gives what one position's logits give."""
    model, examples = PrefixModel(), single_token_examples()
    answers = [(e, c) for e in examples for c in e.candidates]
    sequences = [
        ScoredSequence(e.prompt, ((len(e.prompt) - 1, ((c[0], index),)),)) for index, (e, c) in enumerate(answers)
    ]
    one_per_candidate = lay_out_sequences(examples, sequences, micro_batch_rows=100, right_only=False)
    expected = answer_scores(model, one_per_candidate)
    assert torch.equal(answer_scores(model, lay_out(examples, micro_batch_rows=100)), expected)
    assert model.shapes == [(7, 5), (3, 5)]


def test_the_candidates_loss_is_cross_entropy_over_the_candidates() -> None:
    model, examples = PrefixModel(), several_token_examples()
    batch = lay_out(examples, micro_batch_rows=2)
    expected = [
        math.log(sum(math.exp(score) for score in scores)) - scores[e.right]
        for e, scores in zip(examples, by_hand(model, examples), strict=True)
    ]
    losses = answer_losses(answer_scores(model, batch), batch, "candidates")
    assert losses.tolist() == [pytest.approx(expected, abs=1e-6)]


def test_the_vocabulary_loss_needs_only_the_right_answers() -> None:
    model, examples = PrefixModel(), several_token_examples()
    batch = lay_out(examples, micro_batch_rows=100, right_only=True)
    expected = [-scores[e.right] for e, scores in zip(examples, by_hand(model, examples), strict=True)]
    losses = answer_losses(answer_scores(model, batch), batch, "vocabulary")
    assert losses.tolist() == [pytest.approx(expected, abs=1e-6)]
    assert model.shapes == [(2, 4)]


def test_micro_batched_equals_whole_batch_loss() -> None:
    model, examples = PrefixModel(), several_token_examples() * 4
    whole, cut = (lay_out(examples, micro_batch_rows=rows) for rows in (1000, 3))
    # Here the model rounds alike for any padding, so equality is exact but for the order of float64 additions.
    losses = [float(answer_losses(answer_scores(model, b), b, "candidates").mean()) for b in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-14)


OBJECTIVES: list[Objective] = ["candidates", "vocabulary"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batch_rows", [1, 3, 100])
def test_points_side_by_side_give_the_bits_of_one_after_the_other(objective: Objective, micro_batch_rows: int) -> None:
    model, batch = PrefixModel(points=3), lay_out(several_token_examples() * 4, micro_batch_rows=micro_batch_rows)
    together = answer_losses(answer_scores(model, batch), batch, objective)
    apart = [answer_losses(answer_scores(model.at(point), batch), batch, objective) for point in range(3)]
    assert together.shape == (3, 8)
    assert together.dtype == torch.float64
    assert torch.equal(together, torch.cat(apart))
    assert len(set(together[:, 0].tolist())) == 3


def test_a_batch_may_be_scored_again_and_gives_the_same_bits() -> None:
    model, batch = PrefixModel(), lay_out(several_token_examples(), micro_batch_rows=2)
    assert torch.equal(answer_scores(model, batch), answer_scores(model, batch))


class SilentModel:
    """A model whose logits have no values to look at, as on a device that is still computing."""

    device = torch.device("meta")

    def __init__(self) -> None:
        self.passes = 0

    def logits(self, batch: TokenBatch) -> Tensor:
        assert batch.input_ids.device == self.device
        self.passes += 1
        return torch.empty(2, len(batch.logit_rows), VOCABULARY, device=self.device)


def test_all_passes_are_made_before_the_host_waits_for_a_value() -> None:
    """The meta device refuses whatever needs a value, and it is the copy to the host that is refused."""
    model = SilentModel()
    batch = lay_out(several_token_examples(), micro_batch_rows=1, device=model.device)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        answer_scores(model, batch)
    assert model.passes == len(batch.buckets) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_host_waits_once_for_a_batch() -> None:
    class OnCuda(PrefixModel):
        device = torch.device("cuda")

    model = OnCuda(points=2)
    model.tables = model.tables.cuda()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            answer_scores(model, lay_out(several_token_examples(), micro_batch_rows=1, device=model.device))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught) == 1


def test_a_log_probability_depends_on_its_own_row_alone() -> None:
    """41 rows of 50,000 words are more than one portion of 20 rows; each row alone gives the same bits."""
    values = np.random.Generator(np.random.Philox(5)).standard_normal((1, 41, 50_000))
    logits, targets = torch.from_numpy(values).float(), torch.arange(82).view(41, 2)
    whole = target_log_probabilities(logits, targets).view(41, 2)
    assert torch.equal(whole, torch.log_softmax(logits[0], dim=1).gather(1, targets))
    for row in range(41):
        assert torch.equal(target_log_probabilities(logits[:, row : row + 1], targets[row : row + 1])[0], whole[row])


def test_log_probabilities_take_no_second_copy_of_the_logits() -> None:
    logits, targets = torch.zeros(2, 20, 100_000), torch.zeros(20, 1, dtype=torch.int64)
    live = LiveBytes()
    with live:
        target_log_probabilities(logits, targets)
    assert logits.nbytes == 16_000_000
    assert live.peak <= (4 << 20) + 4096


def test_the_highest_score_is_the_guess() -> None:
    batch = lay_out(single_token_examples(), micro_batch_rows=9)
    scores = torch.tensor([[0.0, -1, 0, -1, -3, -2, -1], [0.0, -1, -1, 0, -3, -2, -1], [-2.0, -1, 0, -1, -1, -2, -1]])
    assert is_right(scores.double(), batch).sum(dim=1).tolist() == [2, 3, 0]


def test_right_only_scores_cannot_be_compared() -> None:
    batch = lay_out(several_token_examples(), micro_batch_rows=9, right_only=True)
    with pytest.raises(DataError, match="cannot be compared"):
        is_right(answer_scores(PrefixModel(), batch), batch)


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
            self.tables.requires_grad_(True)

    model = Differentiable()
    batch = lay_out(single_token_examples(), micro_batch_rows=2)
    answer_losses(answer_scores(model, batch), batch, "candidates").mean().backward()  # type: ignore[no-untyped-call]
    assert model.tables.grad is not None
    assert float(model.tables.grad.abs().sum()) > 0
