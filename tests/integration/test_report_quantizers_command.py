"""``zo-cloud report quantizers`` as an operator runs it: its files, its errors, and SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import look_at
from tiny_checkpoint import build_checkpoint, write_text

from cloud_service.cli import main

DEADLINE_SECONDS = 120


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    model = build_checkpoint(tmp_path / "tiny")
    text = write_text(tmp_path / "text.jsonl")
    return [
        "report", "quantizers", str(model), "--output", str(tmp_path / "out"), "--calibration-text", str(text),
        "--sequences", "4", "--tokens", "24", "--evaluation-documents", "2", "--offline", "--quiet",
    ]  # fmt: skip


def test_a_sweep_leaves_table_data_plot_and_a_page_that_fits_a_phone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--methods", "uniform,rtn", "--bits", "2,8", "--group-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:5]] == [
        "uniform g16 gptq 2 bit", "uniform g16 gptq 8 bit", "rtn g16 gptq 2 bit", "rtn g16 gptq 8 bit",
    ]  # fmt: skip
    document = json.loads((tmp_path / "out" / "quantizers.json").read_text())
    assert [one["bits"] for one in document["combinations"]] == [2, 8, 2, 8]
    assert document["model"] == "tiny"
    assert str(tmp_path) not in json.dumps(document)
    assert (tmp_path / "out" / "quantizers.svg").read_bytes().startswith(b"<?xml")
    seen = look_at((tmp_path / "out" / "quantizers.html").read_bytes(), tmp_path)
    assert (seen.width, seen.scroll_width, seen.too_wide, seen.loads, seen.console) == (390, 390, [], [], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "5"], "2, 3, 4 or 8"),
        (["--methods", "awq"], "'lut', 'shared', 'uniform' or 'rtn'"),
        (["--compensation", "obs"], "'none', 'gptq' or 'refit'"),
        (["--evaluation-documents", "0"], "must be at least 1"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_read(
    command: list[str], options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bits_that_are_no_numbers_are_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--bits", "4,many"]) == 2
    assert "'4,many' is no list of numbers" in capsys.readouterr().err


def test_a_killed_sweep_keeps_its_finished_combinations(command: list[str], tmp_path: Path) -> None:
    finished = tmp_path / "out" / ".combinations" / "rtn-8-g64-gptq.json"
    arguments = [*command, "--methods", "rtn,lut", "--bits", "8,4"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "cloud_service.cli", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not finished.exists() and sweep.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    sweep.send_signal(signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    kept = finished.read_bytes()
    written = finished.stat().st_mtime_ns
    assert main(arguments) == 0
    assert (finished.read_bytes(), finished.stat().st_mtime_ns) == (kept, written)
    document = json.loads((tmp_path / "out" / "quantizers.json").read_text())
    assert json.loads(kept) in document["combinations"]
    assert len(document["combinations"]) == 4
