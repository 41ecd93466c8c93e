"""What a batch of examples becomes before it runs: worked by hand, and the laws of moving it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from device_client.tasks.layout import AnswerBatch, ScoredSequence, lay_out, token_batch
from shared.tasks.examples import Example

LABELS = [
    Example((1, 4, 2), ((5,), (6,)), 0, "line 1"),
    Example((9,), ((7,), (8,), (3,)), 2, "line 2"),
]
PHRASES = [
    Example((1, 4), ((5, 6), (7,)), 1, "line 1"),
    Example((1, 2, 3), ((4, 4), (4, 5)), 0, "line 2"),
]


def tensors(batch: AnswerBatch) -> list[Tensor]:
    return [
        tensor
        for b in batch.buckets
        for tensor in (b.tokens.input_ids, b.tokens.attention_mask, b.tokens.logit_rows, b.tokens.logit_columns)
    ] + [b.targets for b in batch.buckets]


def test_rows_are_padded_on_the_right() -> None:
    batch = token_batch([ScoredSequence((1, 2, 3), ((1, ()), (2, ()))), ScoredSequence((4,), ((0, ()),))])
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (batch.logit_rows.tolist(), batch.logit_columns.tolist()) == ([0, 0, 1], [1, 2, 0])


def test_candidates_of_one_token_are_read_from_one_position() -> None:
    batch = lay_out(LABELS, micro_batch_rows=9)
    (bucket,) = batch.buckets
    assert bucket.tokens.input_ids.tolist() == [[9, 0, 0], [1, 4, 2]]
    assert bucket.tokens.logit_columns.tolist() == [0, 2]
    assert bucket.targets.tolist() == [[7, 8, 3], [5, 6, 0]]
    assert batch.index.reads.tolist() == [0, 1, 2, 3, 4]
    assert batch.index.read_answers.tolist() == [2, 3, 4, 0, 1]
    assert batch.index.right.tolist() == [0, 4]
    assert batch.index.candidates.tolist() == [[0, 1, -1], [2, 3, 4]]
    assert batch.index.lengths.tolist() == [1, 1, 1, 1, 1]


def test_longer_candidates_are_sequences_of_their_own() -> None:
    """The last token of an answer is read, never run."""
    batch = lay_out(PHRASES, micro_batch_rows=9)
    (bucket,) = batch.buckets
    assert bucket.tokens.input_ids.tolist() == [[1, 4, 0, 0], [1, 4, 5, 0], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert bucket.tokens.logit_rows.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert bucket.tokens.logit_columns.tolist() == [1, 1, 2, 2, 3, 2, 3]
    assert bucket.targets.tolist() == [[7], [5], [6], [4], [4], [4], [5]]
    assert batch.index.read_answers.tolist() == [1, 0, 0, 2, 2, 3, 3]
    assert batch.index.lengths.tolist() == [2, 1, 2, 2]


def test_numbers_of_reads_go_on_from_bucket_to_bucket() -> None:
    """The place that a position with fewer targets leaves, here number 2, is nobody's."""
    two_labels, three_labels = Example((8,), ((1,), (2,)), 0, "line"), LABELS[1]
    batch = lay_out([LABELS[0], two_labels, three_labels], micro_batch_rows=2)
    assert [bucket.targets.tolist() for bucket in batch.buckets] == [[[1, 2, 0], [7, 8, 3]], [[5, 6]]]
    assert batch.index.reads.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert batch.index.read_answers.tolist() == [2, 3, 4, 5, 6, 0, 1]


def test_only_right_answers_are_laid_out_where_only_they_are_wanted() -> None:
    batch = lay_out(PHRASES, micro_batch_rows=9, right_only=True)
    assert batch.is_right_only
    assert batch.buckets[0].tokens.input_ids.tolist() == [[1, 4, 0, 0], [1, 2, 3, 4]]
    assert batch.index.read_answers.tolist() == [1, 2, 2]


def prompts(*lengths: int) -> list[Example]:
    return [Example((1,) * length, ((5,), (6,)), 0, "line") for length in lengths]


def shapes(batch: AnswerBatch) -> list[tuple[int, int]]:
    return [bucket.tokens.shape for bucket in batch.buckets]


def test_sequences_of_similar_length_run_together() -> None:
    assert shapes(lay_out(prompts(9, 2, 8, 1), micro_batch_rows=2)) == [(2, 2), (2, 9)]


def test_short_sequences_are_not_padded_to_a_long_one() -> None:
    """Side by side: 4 · 200 = 800 tokens. Apart: 3 · 5 + 200 = 215 and the weights once more."""
    batch = lay_out(prompts(200, 3, 4, 5), micro_batch_rows=4)
    assert shapes(batch) == [(3, 5), (1, 200)]
    assert (batch.real_tokens, batch.computed_tokens) == (212, 215)
    assert batch.real_token_share == pytest.approx(212 / 215)


def test_a_batch_without_padding_computes_real_tokens_only() -> None:
    assert lay_out(prompts(7, 7, 7), micro_batch_rows=2).real_token_share == 1


@st.composite
def examples(draw: Callable[..., Any]) -> list[Example]:
    answer = st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple)
    rows = st.tuples(
        st.lists(st.integers(1, 30), min_size=1, max_size=90).map(tuple),
        st.lists(answer, min_size=1, max_size=3, unique=True).map(tuple),
    )
    return [
        Example(prompt, candidates, 0, "line") for prompt, candidates in draw(st.lists(rows, min_size=1, max_size=9))
    ]


@given(examples(), st.integers(1, 8))
def test_every_token_of_every_answer_is_read_where_it_is_predicted(rows: list[Example], micro_batch_rows: int) -> None:
    """Read back from the tensors: in front of each read stand the prompt and the answer so far."""
    batch = lay_out(rows, micro_batch_rows=micro_batch_rows)
    seen = []
    for bucket in batch.buckets:
        ids, tokens = bucket.tokens.input_ids, bucket.tokens
        for row, column, targets in zip(tokens.logit_rows, tokens.logit_columns, bucket.targets, strict=True):
            seen += [(*ids[row, : column + 1].tolist(), target) for target in targets.tolist()]
    found = sorted(zip(batch.index.read_answers.tolist(), [seen[i] for i in batch.index.reads.tolist()], strict=True))
    answers = [(e.prompt, c) for e in rows for c in e.candidates]
    wanted = [(i, p + c[:length]) for i, (p, c) in enumerate(answers) for length in range(1, len(c) + 1)]
    assert found == sorted(wanted)
    assert all(rows_at_once <= micro_batch_rows for rows_at_once, _ in shapes(batch))


@given(examples(), st.integers(1, 8))
def test_moving_a_batch_changes_no_number(rows: list[Example], micro_batch_rows: int) -> None:
    """A batch moves as one tensor that is cut up again: the parts come back as they were, in place and shape."""
    batch = lay_out(rows, micro_batch_rows=micro_batch_rows)
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(was, now) for was, now in zip(tensors(batch), tensors(moved), strict=True))


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [argument.device for argument in args if isinstance(argument, Tensor)]
        self.count += isinstance(result, Tensor) and bool(given) and result.device not in given
        return result


def test_a_batch_reaches_the_device_in_one_copy() -> None:
    batch = lay_out(prompts(200, 3, 4, 5), micro_batch_rows=2)
    with Copies() as copies:
        moved = batch.to(torch.device("meta"))
    assert copies.count == 1
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert shapes(moved) == shapes(batch)
    assert (moved.real_tokens, moved.computed_tokens) == (batch.real_tokens, batch.computed_tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_batch_on_cuda_holds_what_it_held_on_the_host() -> None:
    batch = lay_out(prompts(200, 3, 4, 5), micro_batch_rows=2)
    moved = lay_out(prompts(200, 3, 4, 5), micro_batch_rows=2, device="cuda")
    for host, there in zip(tensors(batch), tensors(moved), strict=True):
        assert there.device.type == "cuda"
        assert torch.equal(host, there.cpu())
