"""Exact match and F1 as SQuAD defines them."""

from __future__ import annotations

import pytest

from device_client.tasks.answer_text import exact_match, f1, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The  Eiffel Tower!\n", "eiffel tower"),
        ("an apple, a pear", "apple pear"),
        ("theatre", "theatre"),  # "the" is an article as a word alone
        ("U.S.", "us"),
        ("the", ""),
    ],
)
def test_case_articles_punctuation_and_spaces_make_no_difference(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_an_exact_match_is_one_of_the_normalised_texts() -> None:
    assert exact_match("The Eiffel tower.", "eiffel tower") == 1
    assert exact_match("Eiffel towers", "eiffel tower") == 0


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("the cat sat", "cat sat", 1.0),
        ("cat sat down", "cat", 0.5),  # precision 1/3, recall 1
        ("cat cat", "cat", 2 / 3),  # the second is one too many
        ("dog", "cat", 0.0),
        ("the", "a", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_f1_counts_the_words_of_both(answer: str, wanted: str, expected: float) -> None:
    assert f1(answer, wanted) == pytest.approx(expected)
