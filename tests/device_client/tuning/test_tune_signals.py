"""Ctrl-C, Ctrl-Z and SIGKILL in a process of its own: exit code, messages, locks, and the same run afterwards."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_client.cli import main

STEPS = 80
SAME_BYTES = ("journal.bin", "metrics.jsonl", "last.safetensors", "best.safetensors", "result.json", "answers.json")
PATIENCE_SECONDS = 60


def words(rows: Path, output: Path) -> list[str]:
    return [
        "tune", "--data", str(rows), "--test", str(rows), "--steps", str(STEPS), "--batch", "4", "--validate-every",
        "20", "--output", str(output), "--device", "cpu", "--backend", "reference",
    ]  # fmt: skip


@contextmanager
def tuning(home: Path, rows: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a tune in a process of its own; it is killed where a test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "device_client.cli", *words(rows, output)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"ZO_DEVICE_HOME": str(home)},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(is_so: Callable[[], bool]) -> None:
    """Look again and again, at most ``PATIENCE_SECONDS``."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end
        select.select([], [], [], 0.002)


def wait_for_file(output: Path, name: str, size: int = 1) -> None:
    """Wait until a file of the run has so many bytes."""
    path = output / name
    wait_for(lambda: path.exists() and path.stat().st_size >= size)


def state_of(process: subprocess.Popen[str]) -> str:
    """Return what the kernel says a process does: R, S, T for stopped, …"""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, spoken = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, spoken


def test_a_run_that_was_interrupted_suspended_and_killed_ends_with_the_same_bytes(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "stopped"

    with tuning(home, rows, output) as process:
        wait_for_file(output, "metrics.jsonl")
        process.send_signal(signal.SIGINT)
        code, spoken = end_of(process)
    assert code == 130
    assert "Traceback" not in spoken
    assert f"interrupted; everything done is in {output}" in spoken
    assert f"Next: zo-device tune --data {rows}" in spoken

    before = (output / "journal.bin").stat().st_size
    with tuning(home, rows, output) as suspended:
        wait_for_file(output, "journal.bin", before + 1)
        suspended.send_signal(signal.SIGSTOP)  # as Ctrl-Z does; without a terminal its own signal is ignored
        wait_for(lambda: state_of(suspended) == "T")
        assert main(words(rows, output)) == 11
        assert "another zo-device is tuning" in capsys.readouterr().err
        standing = (output / "journal.bin").stat().st_size
        suspended.send_signal(signal.SIGCONT)
        wait_for_file(output, "journal.bin", standing + 1)
        suspended.kill()  # its lock goes with it
        suspended.wait()

    whole = tmp_path / "whole"
    assert [main(words(rows, folder)) for folder in (output, whole)] == [0, 0]
    for name in SAME_BYTES:
        assert (output / name).read_bytes() == (whole / name).read_bytes()
