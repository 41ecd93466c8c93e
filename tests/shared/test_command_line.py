"""Whoever reads the output of a command may stop reading, and a wrong call is an error like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cloud_service.cli
import device_client.cli
from shared.command_line import dropping_unread_output

CLOUD, DEVICE = "cloud_service.cli", "device_client.cli"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that is both a service's data folder and a device's home."""
    assert cloud_service.cli.main(["keys", "create", "--data", str(tmp_path)]) == 0
    return tmp_path


def run_unread(place: Path, *words: str, is_unbuffered: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose reader has gone before anything is printed."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "ZO_DEVICE_HOME": str(place), "ZO_CLOUD_DATA": str(place)}
    environment |= {"PYTHONUNBUFFERED": "1"} if is_unbuffered else {}
    try:
        return subprocess.run(
            [sys.executable, "-m", *words], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("is_unbuffered", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        [CLOUD, "keys", "list"],
        [CLOUD, "keys", "list", "--json"],
        [CLOUD, "bundles", "list"],
        [CLOUD, "bundles", "audit", "--json"],
        [CLOUD, "gc", "--dry-run"],
        [CLOUD, "--help"],
        [DEVICE, "list", "--json"],
        [DEVICE, "runs", "--json"],
        [DEVICE, "--help"],
    ],
)
def test_a_reader_that_has_gone_ends_a_command_quietly(place: Path, words: list[str], is_unbuffered: bool) -> None:
    done = run_unread(place, *words, is_unbuffered=is_unbuffered)
    assert done.returncode == 0
    for word in (b"Traceback", b"Broken", b"rror"):
        assert word not in done.stderr


@pytest.mark.parametrize(("program", "words"), [(CLOUD, ["keys", "revoke", "x"]), (DEVICE, ["verify"])])
def test_an_error_keeps_its_exit_code_without_a_reader(place: Path, program: str, words: list[str]) -> None:
    done = run_unread(place, program, *words, "--json")
    assert done.returncode == 4
    assert b"Next: " in done.stderr
    assert b"Traceback" not in done.stderr


def test_another_pipe_that_breaks_is_still_an_error() -> None:
    with pytest.raises(BrokenPipeError), dropping_unread_output():
        raise BrokenPipeError


@pytest.mark.parametrize(
    "words", [[], ["unknown"], ["keys"], ["keys", "list", "--unknown"], ["gc", "--grace-hours", "x"]]
)
def test_a_wrong_call_of_the_operators_is_json_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cloud_service.cli.main([*words, "--json"]) == 2
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert error["type"] == "invalid-request"
    assert error["next_step"].startswith("zo-cloud")
    assert error["next_step"].endswith("--help")
    assert error["next_step"] in told.err


def test_an_unexpected_error_of_the_operators_command_is_no_traceback_unless_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is none stands for the unexpected."""
    (place / "jobs.sqlite3").write_bytes(b"no database, but somebody's secret")
    for name in ("jobs.sqlite3-wal", "jobs.sqlite3-shm"):
        (place / name).unlink(missing_ok=True)
    words = ["keys", "list", "--data", str(place), "--json"]
    assert cloud_service.cli.main(words) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["type"] == "unexpected"
    assert "Traceback" not in told.err
    assert told.err == "Error: unexpected DatabaseError\nNext: set ZO_CLOUD_DEBUG=1 to see where\n"
    monkeypatch.setenv("ZO_CLOUD_DEBUG", "1")
    assert cloud_service.cli.main(words) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_path_that_is_no_folder_names_itself_and_what_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").touch()
    assert cloud_service.cli.main(["prepare", "gpt2", "--output", str(place / "file" / "out")]) == 7
    told = capsys.readouterr().err
    assert str(place / "file") in told
    assert "\nNext: " in told


@pytest.mark.parametrize(
    ("main", "words", "help_command"),
    [
        (device_client.cli.main, ["generate", "some", "--lenght", "3"], "zo-device generate --help"),
        (cloud_service.cli.main, ["plan", "some", "--lenght", "3"], "zo-cloud plan --help"),
    ],
)
def test_an_option_that_a_command_does_not_know_leads_to_that_commands_help(
    main: Callable[[list[str]], int], words: list[str], help_command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"Next: {help_command}" in capsys.readouterr().err
