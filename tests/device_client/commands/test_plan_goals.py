"""``plan`` for the goals of ``tune``: its figure is the one that the run of the same options is planned with.

The tiny bundle has one token for each byte and puts one in front of a text.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

MACHINE = ("--device", "cpu", "--backend", "reference")
CHECKER = shlex.join([sys.executable, "-c", "for line in iter(input, ''): print(len(line), flush=True)"])
PROMPT, ANSWER = "x" * 30, "lamp"
PROMPT_TOKENS, ANSWER_TOKENS = 31, 5  # one before the prompt, and one where the answer ends

CASES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "exact match": ({"prompt": PROMPT, "completion": ANSWER}, ("--objective", "exact-match", "--answer-tokens", "9")),
    "f1": ({"prompt": PROMPT, "completion": ANSWER}, ("--objective", "f1", "--answer-tokens", "6", "--queries", "2")),
    "checker": ({"prompt": PROMPT}, ("--checker", CHECKER, "--answer-tokens", "3")),
    "checker of upper blocks": (
        {"prompt": PROMPT},
        ("--checker", CHECKER, "--answer-tokens", "3", "--blocks", "upper:1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_figure_is_the_one_of_the_run(store: object, command: Any, tmp_path: Path, case: str) -> None:
    row, words = CASES[case]
    rows = tmp_path / "rows.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 6)
    tuned = command("tune", "--data", str(rows), "--batch", "4", "--steps", "1", *words, *MACHINE)
    assert tuned.code == 0, tuned.told

    scored = str(ANSWER_TOKENS if "completion" in row else 1)
    shape = ("--length", str(PROMPT_TOKENS), "--rows", "4", "--answers", scored, "--sequences", "6")
    planned = command("plan", *shape, *words, *MACHINE)

    assert planned.code == 0, planned.told
    assert planned.result["total_bytes"] == tuned.result["resources"]["planned_memory_bytes"]


def test_keys_and_values_of_prompt_and_answer_are_in_it(store: object, command: Any) -> None:
    """Of 4 rows at both points, float32: 16 numbers for a key, 16 for a value, in two blocks and once while one moves.

    Where they grow there is room for 64 tokens more.
    """
    words = ("plan", "--length", "30", "--rows", "4", *MACHINE)
    plain, written = command(*words), command(*words, "--objective", "f1", "--answer-tokens", "10")
    assert "key-value cache" not in plain.result["parts"]
    assert written.result["parts"]["key-value cache"] == 2 * 4 * (30 + 10 + 64) * (2 + 1) * (16 + 16) * 4
    assert (plain.result["columns"], written.result["columns"]) == (30, 40)
    assert "the model writes up to 10 tokens behind 30 of a prompt" in written.told


def test_prompt_and_answer_never_leave_the_context(store: object, command: Any) -> None:
    words = ("plan", *MACHINE, "--objective", "f1")
    assert command(*words).result["columns"] == 128
    assert command(*words, "--length", "120").result["columns"] == 128


def test_accuracy_takes_what_the_loss_takes_and_has_no_first_order(store: object, command: Any) -> None:
    words = ("plan", "--length", "30", *MACHINE)
    loss, accuracy = command(*words), command(*words, "--objective", "accuracy")
    assert accuracy.result["total_bytes"] == loss.result["total_bytes"]
    assert loss.result["first_order"] is not None
    assert accuracy.result["first_order"] is None
    assert "the objective accuracy has no gradient" in accuracy.told
    assert "does not fit" not in accuracy.told


def test_upper_blocks_save_nothing_while_answers_are_written(store: object, command: Any) -> None:
    words = ("plan", "--length", "30", "--blocks", "upper:1", *MACHINE)
    loss, written = command(*words), command(*words, "--checker", CHECKER)
    assert loss.result["step_cost_share"] < 1
    assert written.result["step_cost_share"] == written.result["step_cost_share_of_new_rows"] == 1
    assert "each token that the model writes goes through all of them" in written.told


def test_without_a_goal_nothing_is_said_of_one(store: object, command: Any) -> None:
    plain = command("plan", *MACHINE)
    assert plain.result == command("plan", "--objective", "loss", *MACHINE).result
    assert plain.result.keys().isdisjoint({"metric", "answer_tokens"})
    assert "bjective" not in plain.told


@pytest.mark.parametrize(
    "words",
    [
        ("--objective", "f1", "--method", "prefix"),
        ("--checker", CHECKER, "--method", "lora"),
        ("--checker", "no-such-command"),
        ("--checker", CHECKER, "--objective", "accuracy"),
        ("--answer-tokens", "3"),
    ],
)
def test_what_tune_refuses_is_refused_in_the_same_words(store: object, command: Any, words: tuple[str, ...]) -> None:
    planned, tuned = command("plan", *words), command("tune", "--data", "rows.jsonl", *words)
    assert planned.code == tuned.code == 2
    assert planned.result["error"] == tuned.result["error"]
