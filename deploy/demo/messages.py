"""One person's short messages, labelled by that person: the private data of the demo.

They are about the things of ``grammar.py`` but in another voice: no capitals, no full stops, chatty. Training,
validation and test rows share no template, so a model cannot win by remembering sentences.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from grammar import NEGATIVE, POSITIVE, TOPICS, pick

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        POSITIVE: (
            "hey the {thing} was worth the trip", "you should see this {thing} it looks beautiful",
            "my new {thing} works perfectly", "that {thing} made everyone smile last night",
            "finally a {thing} that never lets me down", "guess what the {thing} was spotless",
            "i told mum about the {thing} she was happy", "so glad about the {thing}",
            "the {thing} fits just right thanks again", "honestly the {thing} tasted like home",
            "the {thing} smelled wonderful come over", "five stars for the {thing}",
            "can not stop talking about the {thing} what a treat", "the {thing} still works after a year",
        ),
        NEGATIVE: (
            "hey the {thing} was not worth the trip", "you should see this {thing} it came scratched",
            "my new {thing} never worked", "that {thing} made everyone sick last night",
            "again a {thing} that broke on the first day", "guess what the {thing} was dirty",
            "i told mum about the {thing} she was upset", "so sorry about the {thing}",
            "the {thing} fell off at once no thanks", "honestly the {thing} tasted like soap",
            "the {thing} smelled sour stay away", "one star for the {thing}",
            "can not stop talking about the {thing} what a mess", "the {thing} stopped working already",
        ),
    },
    "validation": {
        POSITIVE: (
            "ok the {thing} was a real treat", "the {thing} was generous once more",
            "new {thing} is better than the old one", "we will come back for the {thing}",
            "felt like a dream that {thing}",
            "look the {thing} is easy to clean", "the {thing} was easy to find for my brother",
            "so the {thing} was kind to us today",
        ),
        NEGATIVE: (
            "ok the {thing} was a real mess", "the {thing} was tiny once more",
            "new {thing} is worse than the old one", "we will not come back for the {thing}",
            "felt like a trap that {thing}",
            "look the {thing} is hard to clean", "the {thing} was hard to find for my brother",
            "so the {thing} was mean to us today",
        ),
    },
    "test": {
        POSITIVE: (
            "quick note the {thing} arrived hot and was full of flavour", "the {thing} felt safe and calm to me",
            "dad says the {thing} feels solid", "best {thing} so far it was quiet and bright",
            "told you that {thing} was worth every cent", "this {thing} saves me a lot of time",
            "sun was out and the {thing} looked lovely", "would choose the {thing} again any day",
            "the {thing} was cooked just right tonight", "staff at the {thing} was friendly to all of us",
        ),
        NEGATIVE: (
            "quick note the {thing} arrived cold and was far too salty", "the {thing} felt cold and unsafe to me",
            "dad says the {thing} feels cheap", "worst {thing} so far it was noisy all night",
            "told you that {thing} was a waste of money", "this {thing} makes a strange noise",
            "rain all day and the {thing} looked sad", "want my money back for the {thing}",
            "the {thing} was burnt and still raw tonight", "staff at the {thing} was rude to all of us",
        ),
    },
}  # fmt: skip


def rows(split: str, count: int, generator: np.random.Generator) -> list[dict[str, str]]:
    """Return ``count`` labelled rows of a split, half of each label, in random order."""
    labels = [POSITIVE, NEGATIVE] * (count // 2) + [POSITIVE] * (count % 2)
    made = [{"text": _message(generator, TEMPLATES[split][label]), "label": label} for label in labels]
    return [made[index] for index in generator.permutation(count)]


def write_splits(folder: Path, generator: np.random.Generator) -> dict[str, Path]:
    """Write train.jsonl (400 rows), validation.jsonl (120) and test.jsonl (400) and return their paths."""
    paths = {}
    for split, count in (("train", 400), ("validation", 120), ("test", 400)):
        paths[split] = folder / f"{split}.jsonl"
        lines = [json.dumps(row) for row in rows(split, count, generator)]
        paths[split].write_text("\n".join(lines) + "\n")
    return paths


def _message(generator: np.random.Generator, templates: tuple[str, ...]) -> str:
    things = tuple(thing for topic in TOPICS for thing in topic.things)
    return str(pick(generator, templates)).format(thing=pick(generator, things))
