"""A home that is somebody else's, or no folder, is named with what to do; no command shows an unexpected error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_client.settings import Settings
from device_client.store import make_home, refusals
from shared.errors import DiskError

NOBODY = 65534
READING = [
    ("list",),
    ("inspect",),
    ("verify",),
    ("plan",),
    ("rm", "tiny"),
    ("runs",),
    ("generate", "tiny", "Hello"),
    ("data", "check", "--data", "rows.jsonl"),
    ("tune", "--data", "rows.jsonl"),
    ("eval", "--data", "rows.jsonl"),
    ("export", "tiny", "stick"),
]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Have no more rights than others have, also where the tests run as root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)


@pytest.fixture
def locked_home(home: Path) -> Iterator[Path]:
    home.mkdir()
    home.chmod(0)
    yield home
    home.chmod(0o700)


@pytest.mark.parametrize("words", [*READING, ("prune",)])
def test_a_home_that_may_not_be_looked_into_is_exit_7(command, locked_home: Path, words: tuple[str, ...]) -> None:
    command(*words)  # with the rights to import what it needs
    with as_nobody():
        outcome = command(*words)
    assert outcome.code == 7
    error = outcome.result["error"]
    assert error["type"] == "disk-error"
    assert error["found"].startswith(str(locked_home))
    assert error["found"].endswith("Permission denied")
    assert error["needed"] == f"{locked_home} as a folder that you may read and write, with all in it"
    assert "ZO_DEVICE_HOME" in error["next_step"]


@pytest.mark.parametrize("words", READING)
def test_a_home_that_is_a_file_is_exit_7(command, home: Path, words: tuple[str, ...]) -> None:
    home.write_text("")
    outcome = command(*words)
    assert outcome.code == 7
    assert outcome.result["error"]["found"].endswith("Not a directory")
    assert "ZO_DEVICE_HOME" in outcome.result["error"]["next_step"]


@pytest.mark.parametrize("words", READING)
def test_a_home_that_is_a_loop_of_links_is_exit_7(command, home: Path, words: tuple[str, ...]) -> None:
    home.symlink_to(home.name)
    outcome = command(*words)
    assert outcome.code == 7
    assert outcome.result["error"]["found"].endswith("Too many levels of symbolic links")
    assert outcome.result["error"]["next_step"].startswith(f"move {home} away, or set ZO_DEVICE_HOME")


def test_a_pull_into_a_home_that_is_a_file_says_so_before_it_asks_the_server(command, home: Path) -> None:
    home.write_text("")
    outcome = command("pull", "http://127.0.0.1:9/tiny")
    assert outcome.code == 7
    assert outcome.result["error"]["found"] == f"{home}: File exists"


def test_a_home_that_may_be_read_but_not_written_is_no_home_to_pull_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_client.store.os.access", lambda _path, wanted: not wanted & os.W_OK)
    with pytest.raises(DiskError, match="that you may read and write") as caught:
        make_home(Settings(home=tmp_path))
    assert "ZO_DEVICE_HOME" in caught.value.next_step


def test_a_home_that_cannot_be_made_is_named_with_what_stands_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "a" / "b"
    with pytest.raises(DiskError, match="file") as caught:
        make_home(Settings(home=inside))
    assert "ZO_DEVICE_HOME" in caught.value.next_step


def test_a_refusal_elsewhere_does_not_speak_of_the_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError) as caught, refusals(Settings(home=tmp_path / "home")):
        (tmp_path / "file" / "rows.jsonl").read_bytes()
    assert caught.value.found == f"{tmp_path}/file/rows.jsonl: Not a directory"
    assert (caught.value.next_step or "").startswith(f"move {tmp_path}/file away, or ")
    assert "home" not in caught.value.needed + caught.value.next_step.lower()


def test_errors_that_are_about_no_file_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), refusals(Settings(home=tmp_path)):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("is_file", [True, False])
def test_the_doctor_still_names_every_problem(command, home: Path, is_file: bool) -> None:
    command("doctor")
    if is_file:
        home.write_text("")
        outcome = command("doctor")
    else:
        (home / "inside").mkdir(parents=True)
        home.parent.chmod(0)
        with as_nobody():
            outcome = command("doctor")
        home.parent.chmod(0o700)
    assert outcome.code == 1
    assert "ZO_DEVICE_HOME" in outcome.result["problems"][0]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that lets nobody make folders")
def test_a_home_where_the_system_makes_no_folders_is_named() -> None:
    with pytest.raises(DiskError, match="/proc/zo-device: no folder can be made there") as caught:
        make_home(Settings(home=Path("/proc/zo-device")))

    assert caught.value.exit_code == 7
