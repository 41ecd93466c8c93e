"""``data check`` for the goals of ``tune``: the same options, the same refusals, and what a goal can grade.

The tiny bundle has one token for each byte, so that tokens of answers are counted by letters.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--device", "cpu", "--backend", "reference", "--steps", "1")
BRIEF = ("--answer-tokens", "1")
CHECKER = shlex.join([sys.executable, "-c", "for line in iter(input, ''): print(len(line), flush=True)"])
TEXTS = [{"text": "abcd"[number % 4], "label": ("yes", "no")[number % 2]} for number in range(10)]
PAIRS = [{"prompt": f"{number}", "completion": " a lamp" if number % 2 else " lamp"} for number in range(10)]
QUESTIONS = [{"prompt": f"why {number}"} for number in range(10)]


def write(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("rows", "words", "objective", "metric"),
    [
        (TEXTS, (), "candidates", None),
        (TEXTS, ("--objective", "loss", "--loss", "vocabulary"), "vocabulary", None),
        (TEXTS, ("--objective", "accuracy"), "candidates", "accuracy"),
        (PAIRS, (), "vocabulary", None),
        (PAIRS, ("--objective", "f1", *BRIEF), "vocabulary", "f1"),
        (QUESTIONS, ("--checker", CHECKER, *BRIEF), None, "checker"),
        ([{"text": row["text"]} for row in TEXTS], ("--checker", CHECKER, *BRIEF), None, "checker"),
    ],
)
def test_what_tune_takes_is_taken_and_said_to_be_gradable(
    store: object,
    command: Any,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    words: tuple[str, ...],
    objective: str,
    metric: str,
) -> None:
    data = ("--data", write(tmp_path, rows), *words)
    checked, tuned = command("data", "check", *data), command("tune", *data, *QUICK)
    assert (checked.code, tuned.code) == (0, 0), checked.told + tuned.told
    assert (checked.result["objective"], checked.result["metric"]) == (objective, metric)
    assert (tuned.result["result"]["objective"], tuned.result["result"].get("metric")) == (objective, metric)
    parts = checked.result["rows"]
    assert {name: (part["gradable"], part["count"]) for name, part in parts.items()} == {
        "training": (8, 8), "validation": (2, 2),
    }  # fmt: skip
    assert f"Objective {metric or 'loss'}: can grade 8 of 8 training rows, 2 of 2 validation rows" in checked.told


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (PAIRS, ("--objective", "accuracy")),
        (PAIRS, ("--loss", "candidates")),
        (PAIRS, ("--answer-tokens", "3")),
        (PAIRS, ("--objective", "f1", "--checker", CHECKER)),
        (PAIRS, ("--checker", "no-such-command")),
        (QUESTIONS, ()),
        (QUESTIONS, ("--objective", "exact-match")),
        (QUESTIONS, ("--loss", "vocabulary", "--checker", CHECKER)),
        (TEXTS[:1] * 10, ()),
        ([{"label": "yes"}] * 10, ("--checker", CHECKER)),
    ],
)
def test_what_tune_refuses_is_refused_in_the_same_words(
    store: object, command: Any, tmp_path: Path, rows: list[dict[str, Any]], words: tuple[str, ...]
) -> None:
    data = ("--data", write(tmp_path, rows), *words)
    checked, tuned = command("data", "check", *data), command("tune", *data, *QUICK)
    assert checked.code == tuned.code != 0
    assert checked.result["error"] == tuned.result["error"]


def test_answers_longer_than_what_the_model_writes_are_counted(store: object, command: Any, tmp_path: Path) -> None:
    """ " lamp" has 5 tokens and " a lamp" 7: the space belongs to the answer, and where a text ends does not count."""
    data = ("--data", write(tmp_path, PAIRS), "--validation", write(tmp_path, PAIRS), "--objective", "exact-match")
    for tokens, longer in ((7, 0), (6, 5), (4, 10)):
        checked = command("data", "check", *data, "--answer-tokens", str(tokens))
        assert checked.result["answer_tokens"] == tokens
        assert checked.result["rows"]["training"]["longer_answers"] == longer
        assert f"up to {tokens} tokens, {2 * longer} of the rows' 20 own answers are longer" in checked.told
        is_warned = f"{2 * longer} of 20 answers have more tokens than the model writes ({tokens})" in checked.told
        assert is_warned is bool(longer)
        assert ("--answer-tokens 7" in checked.told) is bool(longer)
    assert command("data", "check", *data).result["answer_tokens"] == 16
    tuned = command("tune", *data, *BRIEF, *QUICK)
    assert "20 of 20 answers have more tokens than the model writes (1)" in tuned.told


def test_answers_without_words_cannot_be_graded(store: object, command: Any, tmp_path: Path) -> None:
    """Exact match knows no articles: of A, B, C and D the first is no answer."""
    rows = [{"text": "x", "label": label} for label in "ABCD" * 3]
    words = ("--data", write(tmp_path, rows), "--validation", write(tmp_path, rows))
    checked = command("data", "check", *words, "--objective", "exact-match")
    training = checked.result["rows"]["training"]
    assert (training["count"], training["gradable"], training["longer_answers"]) == (12, 9, 0)
    assert "6 of 24 answers have no words" in checked.told
    assert command("data", "check", *words, "--objective", "accuracy").result["rows"]["training"]["gradable"] == 12


def test_rows_without_answers_are_shown_by_their_prompts(store: object, command: Any, tmp_path: Path) -> None:
    texts = write(tmp_path, [{"text": f"soup {number}"} for number in range(5)])
    checked = command("data", "check", "--data", texts, "--checker", CHECKER)
    assert "soup 1\nLabel:" in checked.told
    assert "⟦" not in checked.told.replace("⟦ ⟧", "")
    assert "No row has a label" in checked.told
    assert "answers of up to 16 tokens, the rows have none of their own" in checked.told
    assert checked.result["rows"]["training"]["with_answer"] == 0
    own = command("data", "check", "--data", texts, "--checker", CHECKER, "--template", "{text} It was {label}")
    assert "No row has a label" not in own.told
    assert "soup 1 It was" in own.told
