"""Which rows a goal can grade, counted by hand: the tiny tokenizer has one token for each byte."""

from __future__ import annotations

import pytest
from byte_ids import byte_ids
from tiny_bundle import byte_tokenizer_json

from device_client.tasks.gradable import Gradable, goal_warnings, gradable
from shared.bundle.config import TokenizerSettings
from shared.model.tokenizer import BundleTokenizer
from shared.tasks.examples import Example

EOS = 257
ANSWERS = ("lamp", "A", "?", "the red one")


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    settings = TokenizerSettings(bos_token_id=256, eos_token_ids=[EOS], prepend_bos=True, context_length=64)
    return BundleTokenizer(byte_tokenizer_json(), settings)


def row(*answers: str, right: int = 0) -> Example:
    return Example((256, 65), tuple((*byte_ids(answer), EOS) for answer in answers), right, "rows.jsonl line 1")


ROWS = [row(answer) for answer in ANSWERS]


@pytest.mark.parametrize(
    ("rows", "metric", "answer_tokens", "found"),
    [
        (ROWS, None, None, Gradable(4, None, 11)),
        ([row("yes", "no", right=1)], "accuracy", None, Gradable(1, None, 2)),
        (ROWS, "exact-match", 4, Gradable(2, 1, 11)),  # "A" is an article and "?" punctuation
        (ROWS, "f1", 3, Gradable(2, 2, 11)),
        ([*ROWS, row()], "checker", 16, Gradable(5, 0, 11)),
        ([row()], "checker", 16, Gradable(1, 0, 0)),
    ],
)
def test_it_counts(
    tokenizer: BundleTokenizer, rows: list[Example], metric: str | None, answer_tokens: int | None, found: Gradable
) -> None:
    assert gradable(rows, metric, answer_tokens, tokenizer) == found


def test_it_warns_of_what_is_compared_alone(tokenizer: BundleTokenizer) -> None:
    wordless, longer = goal_warnings(ROWS, "f1", 4, tokenizer)
    assert "2 of 4 answers have no words" in wordless
    assert "1 of 4 answers have more tokens than the model writes (4)" in longer
    assert "--answer-tokens 11" in longer
    for metric in (None, "accuracy", "checker"):
        assert goal_warnings(ROWS, metric, 4, tokenizer) == []
