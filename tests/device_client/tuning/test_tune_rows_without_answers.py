"""Rows that hold a prompt alone, where the person's own checker judges what the model writes: tune and eval by command.

Expected scores are the checker's own rule on the answers: it gives each row the number that stands in it.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import call

WORTH = """
import json, sys
for line in sys.stdin:
    print(json.loads(line)["row"]["worth"], flush=True)
"""
"""Says what stands in the row, so that a mean score tells which rows were asked."""


@pytest.fixture
def checker(tmp_path: Path) -> str:
    path = tmp_path / "worth.py"
    path.write_text(WORTH)
    return shlex.join([sys.executable, str(path)])


LABELLED = [{"text": "good", "label": "yes"}, {"text": "poor", "label": "no"}]
ANSWERED = {"prompt": "two", "completion": "three"}
JSONL = {
    "text": [{"text": word} for word in "abcd"],
    "text, some with their label": [*LABELLED, {"text": "fine"}, {"text": "bad", "label": None}],
    "text, all with the same label": [LABELLED[0], {"text": "fine", "label": "yes"}, {"text": "bad"}, {"text": "mid"}],
    "prompt": [{"prompt": word} for word in "abcd"],
    "prompt, some with their completion": [ANSWERED, {"prompt": "one"}, {"prompt": "six"}, {"prompt": "ten"}],
    "messages": [{"messages": [{"role": "user", "content": word}]} for word in "abcd"],
    "messages as prompts": [{"prompt": [{"role": "user", "content": word}]} for word in "abcd"],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({**row, "worth": number}) + "\n" for number, row in enumerate(rows)))
    return path


@pytest.mark.parametrize("kind", JSONL)
def test_tune_and_eval_take_rows_without_answers_and_the_checker_receives_their_fields(
    home: Path, checker: str, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    rows = write(home / "rows.jsonl", JSONL[kind])
    asked = ("--data", str(rows), "--checker", checker, "--answer-tokens", "1")

    code, tuned, spoken = call(capsys, "tune", *asked, "--validation", str(rows), "--steps", "2", "--batch", "2")
    assert code == 0, spoken
    best = tuned["result"]["validation"]["best"]
    assert (best["score"], best["loss"], tuned["result"]["objective"]) == (1.5, None, None)

    for words in (asked, ("--data", str(rows), "--run", tuned["run"])):
        code, scored, spoken = call(capsys, "eval", *words)
        assert code == 0, spoken
        assert (scored["score"], scored["rows"], scored["loss"]) == (1.5, 4, None)


def test_texts_are_held_out_where_some_have_a_label(
    home: Path, checker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(home / "rows.jsonl", JSONL["text, some with their label"])
    words = ("--validation-share", "0.25", "--checker", checker, "--answer-tokens", "1", "--steps", "1")
    code, tuned, spoken = call(capsys, "tune", "--data", str(rows), *words)
    assert code == 0, spoken
    assert tuned["result"]["validation"]["bundle"]["rows"] == 1


def test_a_table_of_texts_alone_is_taken(home: Path, checker: str, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "rows.csv").write_text("text,worth\nthe soup was cold,3\nit was warm,5\n")
    words = ("--data", str(home / "rows.csv"), "--checker", checker, "--answer-tokens", "1")
    code, scored, spoken = call(capsys, "eval", *words)
    assert code == 0, spoken
    assert scored["score"] == 4


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": "good"}, "'label' is missing"),
        ({"text": "good", "label": ""}, "'label' is empty"),
        ({"prompt": "good"}, "'completion' is missing"),
        ({"prompt": [{"role": "user", "content": "good"}]}, "'completion' is missing"),
        ({"messages": [{"role": "user", "content": "good"}]}, "no message of the role 'assistant'"),
    ],
)
@pytest.mark.parametrize("words", [(), ("--objective", "accuracy"), ("--objective", "exact-match")])
def test_without_a_checker_such_rows_are_refused_with_the_line_and_what_to_do(
    home: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], found: str, words: tuple[str, ...]
) -> None:
    rows = write(home / "rows.jsonl", [row, row])
    for command in (("tune", "--validation", str(rows)), ("eval",)):
        code, refused, _ = call(capsys, *command, "--data", str(rows), *words)
        assert code == 9
        assert f"rows.jsonl line 1: {found}" in refused["error"]["found"]
        assert refused["error"]["needed"]
        assert refused["error"]["next_step"]
