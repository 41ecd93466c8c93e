"""The notes that the demo tunes on: half for each person, none twice, and none that says whom it is for."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from setups import HOUSEHOLD, SPLITS

from shared.tasks.datasets import parse_records

ROWS = {
    split: [json.loads(line) for line in (HOUSEHOLD / f"{split}.jsonl").read_text().splitlines()] for split in SPLITS
}


@pytest.mark.parametrize(("split", "for_each"), [("train", 120), ("validation", 30), ("test", 60)])
def test_each_person_has_half_of_every_split(split: str, for_each: int) -> None:
    assert Counter(row["label"] for row in ROWS[split]) == {"Lucy": for_each, "Emma": for_each}


def test_no_note_occurs_twice_in_any_words_order_or_case() -> None:
    words = [tuple(sorted(re.findall(r"\w+", row["text"].lower()))) for rows in ROWS.values() for row in rows]
    assert [note for note, count in Counter(words).items() if count > 1] == []


def test_no_note_says_a_name_of_the_family() -> None:
    assert [row["text"] for rows in ROWS.values() for row in rows if re.search(r"Lucy|Emma", row["text"])] == []


def test_most_of_the_words_of_a_test_note_are_the_topics_and_not_a_training_notes() -> None:
    """No test note shares more than three quarters of its words with any one training note."""
    training = [set(re.findall(r"\w+", row["text"].lower())) for row in ROWS["train"]]
    for row in ROWS["test"]:
        words = set(re.findall(r"\w+", row["text"].lower()))
        assert max(len(words & other) / len(words) for other in training) <= 0.75, row["text"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_device_reads_the_files(split: str) -> None:
    path = HOUSEHOLD / f"{split}.jsonl"
    assert len(parse_records(path, path.read_bytes())) == len(ROWS[split])
