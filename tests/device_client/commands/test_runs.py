"""``runs`` by the command line: its words, the page, and what removing a run deletes and refuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from written_run import HEADER, write_run

from device_client.cli import main
from device_client.tuning.journal import open_journal

ANSWERS = {
    "part": "test", "rows": 1, "labels": None, "confusion": None,
    "shown": [{"place": "line 1", "prompt": "a prompt", "right": None, "before": "", "after": "yes"}],
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name, answers=ANSWERS if name == "one" else None)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main([*words, "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err


def names(found: dict[str, Any]) -> list[str]:
    return [run["name"] for run in found["runs"]]


def test_runs_alone_and_runs_of_a_folder_are_lists(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(call(capsys, "runs")[1]) == names(call(capsys, "runs", "list")[1]) == ["one", "two"]
    assert names(call(capsys, "runs", str(home / "runs" / "two"))[1]) == ["two"]
    assert main(["runs", "--quiet", str(home / "runs" / "two"), "--json"]) == 0


def test_the_help_of_runs_names_what_can_be_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["runs", "--help"])
    text = capsys.readouterr().out
    assert all(f"    {word} " in text for word in ("list", "compare", "report", "rm"))


def test_a_damaged_run_is_listed_with_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = home / "runs" / "one" / "journal.bin"
    data = bytearray(journal.read_bytes())
    data[-40] ^= 1
    journal.write_bytes(data)
    damaged = call(capsys, "runs")[1]["runs"][0]
    assert (damaged["name"], damaged["state"]) == ("one", "damaged")
    assert "run the same tune command again" in damaged["damage"]


def test_a_page_is_written_beside_the_run_or_where_it_is_wanted(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = call(capsys, "runs", "report", "one")
    assert (code, found["page"], found["has_rows"]) == (0, str(home / "runs" / "one" / "report.html"), True)
    assert call(capsys, "runs", "report", "two")[1]["has_rows"] is False  # it kept none
    code, found, _ = call(capsys, "runs", "report", "one", "--output", str(home / "x.html"), "--without-rows")
    assert (code, found["has_rows"], (home / "x.html").exists()) == (0, False, True)
    assert call(capsys, "runs", "report", "absent")[0] == 4


def test_runs_are_removed_with_all_that_a_killed_process_left(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = home / "runs" / "one"
    (one / ".last.safetensors.0123abcd").write_bytes(b"torn")
    (one / "origin.json").write_text("{}")  # as of a run that somebody shared
    code, found, spoken = call(capsys, "runs", "rm", "one", str(home / "runs" / "two"), "--yes")
    assert code == 0
    assert found["removed"] == [str(one), str(home / "runs" / "two")]
    assert found["freed_bytes"] >= 8192
    assert list((home / "runs").iterdir()) == []
    assert "one is removed" in spoken


def test_what_is_not_a_runs_stays(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "runs" / "one" / "thesis.txt").write_text("mine")
    _, _, spoken = call(capsys, "runs", "rm", "one", "--yes")
    assert [path.name for path in (home / "runs" / "one").iterdir()] == ["thesis.txt"]
    assert "what else is in its folder stays" in spoken


def test_a_run_in_use_is_refused_and_left_whole(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "runs" / "one"
    before = sorted(path.name for path in folder.iterdir())
    with open_journal(folder / "journal.bin", HEADER):
        code, found, _ = call(capsys, "runs", "rm", "one", "--yes")
    assert (code, found["error"]["type"]) == (11, "conflict")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_where_one_run_is_unknown_none_is_removed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "runs", "rm", "one", "absent", "--yes")[0] == 4
    assert (home / "runs" / "one" / "config.json").exists()


def test_nobody_there_to_be_asked_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = call(capsys, "runs", "rm", "one")
    assert code == 2
    assert "--yes" in found["error"]["needed"]
    assert (home / "runs" / "one").exists()


@pytest.mark.parametrize(("answer", "is_left"), [(b"y\n", False), (b"n\n", True), (b"\n", True)])
def test_a_person_at_a_terminal_is_asked(home: Path, answer: bytes, is_left: bool) -> None:
    theirs, ours = pty.openpty()
    os.write(theirs, answer)
    command = [sys.executable, "-m", "device_client.cli", "runs", "rm", "one"]
    done = subprocess.run(command, stdin=ours, capture_output=True, text=True, timeout=60, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert "Delete one (" in done.stderr
    assert (home / "runs" / "one").exists() is is_left
