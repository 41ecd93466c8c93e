"""The demo's texts: made by the project, the same for the same seed, and with test rows of their own kind."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from grammar import NEGATIVE, POSITIVE, document
from messages import TEMPLATES, rows, write_splits
from setups import HERE

from shared.perturbation import random_generator


def test_no_template_occurs_in_two_splits_or_under_two_labels():
    templates = [template for split in TEMPLATES.values() for label in split.values() for template in label]
    assert [template for template, count in Counter(templates).items() if count > 1] == []


def test_no_test_message_differs_from_a_training_message_by_its_thing_alone():
    skeletons = {
        split: {template.replace("{thing}", "") for label in TEMPLATES[split].values() for template in label}
        for split in TEMPLATES
    }
    assert skeletons["test"].isdisjoint(skeletons["train"] | skeletons["validation"])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_labels_are_balanced(split):
    counts = Counter(row["label"] for row in rows(split, 40, random_generator(3)))
    assert counts == {POSITIVE: 20, NEGATIVE: 20}


def test_splits_are_written_as_labelled_json_lines(tmp_path):
    paths = write_splits(tmp_path, random_generator(0, 1))
    lengths = {split: len(path.read_text().splitlines()) for split, path in paths.items()}
    assert lengths == {"train": 400, "validation": 120, "test": 400}
    assert set(json.loads(paths["test"].read_text().splitlines()[0])) == {"text", "label"}


def test_the_same_seed_gives_the_same_documents():
    first, again, other = (random_generator(seed) for seed in (1, 1, 2))
    documents = [document(first) for _ in range(20)]
    assert documents == [document(again) for _ in range(20)]
    assert documents != [document(other) for _ in range(20)]


def test_most_documents_are_pleased_and_some_are_careless():
    generator = random_generator(5)
    documents = [document(generator) for _ in range(600)]
    pleased = sum(text.endswith(("great.", "wonderful.", "lovely.", "excellent.")) for text in documents)
    careless = sum(text[0].islower() for text in documents)
    assert 0.50 < pleased / 600 < 0.68  # two thirds of nine tenths, five standard errors either way
    assert 0.23 < careless / 600 < 0.43


def test_the_calibration_text_is_what_the_grammar_makes():
    generator = random_generator(0, 2)
    kept = [json.loads(line)["text"] for line in (HERE / "texts" / "everyday.jsonl").read_text().splitlines()]
    assert kept == [document(generator) for _ in range(80)]
