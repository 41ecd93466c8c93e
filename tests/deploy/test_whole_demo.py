"""The demo from its first line to its last, with a tiny random model in place of one that takes minutes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_demo
from tiny_checkpoint import build_checkpoint, write_text

STAGES = ["serve", "prepare", "pull", "ask", "tune", "ask again"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The demo's process when it is over, and its output folder."""
    folder = tmp_path_factory.mktemp("demo")
    model = build_checkpoint(folder / "models" / "random", max_position_embeddings=128)
    text = write_text(folder / "text.jsonl", documents=700)
    script = [sys.executable, run_demo.__file__, "--model", str(model), "--text", str(text), "--steps", "2"]
    output = folder / "out [1]"  # a name that rich would take for markup, and a shell for a pattern
    command = [*script, "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False), output


def test_every_stage_is_announced_and_says_its_seconds(done: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    process, output = done
    assert process.returncode == 0, process.stderr
    figures = json.loads((output / "result.json").read_text())
    assert list(figures["stage_seconds"]) == STAGES
    for number, stage in enumerate(STAGES, start=1):
        assert f"{number} {stage}" in process.stderr


def test_accuracy_is_taken_on_all_test_notes_before_and_after(
    done: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    figures = json.loads((done[1] / "result.json").read_text())
    assert figures["test_rows"] == 120
    assert 0 <= figures["accuracy_before"] <= 1
    assert 0 <= figures["accuracy_after"] <= 1
    assert "accuracy on 120 test rows" in done[0].stdout


def test_one_test_note_is_asked_about_before_and_after(done: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    figures = json.loads((done[1] / "result.json").read_text())
    assert done[0].stderr.count(figures["question"]["text"]) == 2
    assert 0 < figures["right_answer_before"] < 1
    assert 0 < figures["right_answer_after"] < 1
    assert figures["right_answer_after"] != figures["right_answer_before"]


def test_the_key_of_the_service_is_in_no_file_that_the_demo_leaves(
    done: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    files = [path for path in done[1].rglob("*") if path.is_file()]
    assert [path for path in files if re.search(rb"zo_[A-Za-z0-9_-]{20,}", path.read_bytes())] == []
    assert "zo_…" in (done[1] / "cloud.err").read_text()


def test_rows_that_cannot_be_read_stop_it_before_anything_is_started(tmp_path: Path) -> None:
    script = [sys.executable, run_demo.__file__, "--model", "tiny", "--data", str(tmp_path / "none.jsonl")]
    process = subprocess.run([*script, "--output", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert process.returncode == 9, process.stderr
    assert "DATA=FILE" in process.stderr
    assert list((tmp_path / "out").iterdir()) == []
