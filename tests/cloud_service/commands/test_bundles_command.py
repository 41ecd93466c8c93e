"""``zo-cloud bundles`` and ``zo-cloud gc`` on the data folder of a service."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf

from cloud_service.cli import main
from shared.bundle.manifest import Descriptor

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def call(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command on the shelf's folder and returns its JSON; ``code`` is the exit status that it must have."""

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        assert main([*words, "--data", str(shelf.folder), "--json"]) == code
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    return run


def test_bundles_are_listed_over_several_pages(shelf: Shelf, manifest: Descriptor, call: Call) -> None:
    for number in range(3):
        shelf.publish("team/tiny", f"r{number}", manifest)
    shelf.publish("other", "latest", manifest)
    rows = call("bundles", "list")["bundles"]
    assert [(row["name"], row["tag"]) for row in rows] == [
        ("other", "latest"),
        ("team/tiny", "r0"),
        ("team/tiny", "r1"),
        ("team/tiny", "r2"),
    ]
    assert len(call("bundles", "list", "team/tiny")["bundles"]) == 3


def test_a_tag_is_moved_rolled_back_and_deleted_and_its_history_tells_it(
    shelf: Shelf, manifest: Descriptor, call: Call
) -> None:
    other = shelf.variant(manifest, 1)
    shelf.publish("team/tiny", "latest", manifest)
    shelf.publish("team/tiny", "latest", other)
    assert call("bundles", "retag", "team/tiny:latest", "--back")["digest"] == manifest.digest
    assert call("bundles", "retag", "team/tiny:stable", other.digest)["digest"] == other.digest
    assert call("bundles", "delete", "team/tiny:latest") == {"deleted": "team/tiny:latest"}
    assert call("bundles", "retag", "team/tiny:latest", "--back")["digest"] == manifest.digest
    call("bundles", "delete", f"team/tiny@{other.digest}")
    history = call("bundles", "history", "team/tiny:latest")["entries"]
    assert [entry["action"] for entry in history] == ["retag", "delete-tag", "retag", "publish", "publish"]
    assert history[0]["peer"] == f"command line of uid {os.getuid()}"
    audit = call("bundles", "audit", "--limit", "2")["entries"]
    assert [(entry["action"], entry["tag"]) for entry in audit] == [("delete-bundle", None), ("delete-tag", "stable")]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["retag", "team/tiny:latest", "sha256:" + "0" * 64], 4),
        (["retag", "team/tiny:latest", "--back"], 4),
        (["retag", "team/tiny", "--back"], 2),
        (["delete", "team/tiny:absent"], 4),
        (["delete", "team/tiny@latest"], 4),
        (["history", "team/tiny:latest", "--limit", "0"], 2),
    ],
)
def test_what_cannot_be_done_says_so_and_changes_nothing(
    shelf: Shelf, manifest: Descriptor, call: Call, words: list[str], code: int
) -> None:
    shelf.publish("team/tiny", "latest", manifest)
    before = shelf.log.newest()
    error = call("bundles", *words, code=code)["error"]
    assert error["found"]
    assert error["next_step"]
    assert shelf.log.newest() == before


def test_the_next_step_is_a_command_here_and_a_route_over_http(
    shelf: Shelf, manifest: Descriptor, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.publish("team/tiny", "latest", manifest)
    absent = "sha256:" + "0" * 64
    for words, step in (
        (["retag", "team/tiny:latest", "--back"], "zo-cloud bundles history team/tiny:latest"),
        (["retag", "team/tiny:latest", absent], "zo-cloud bundles list team/tiny"),
        (["delete", "team/tiny:absent"], "zo-cloud bundles list team/tiny"),
    ):
        assert main(["bundles", *words, "--data", str(shelf.folder)]) == 4
        told = capsys.readouterr().err
        assert told.endswith(f"\nNext: {step}\n")
        assert "/v1/" not in told


def test_the_lines_for_people_say_who_did_what(
    shelf: Shelf, manifest: Descriptor, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.publish("team/tiny", "latest", manifest)
    assert main(["bundles", "audit", "--data", str(shelf.folder)]) == 0
    line = capsys.readouterr().out
    assert f"publish       team/tiny:latest  - → {manifest.digest}  by no key from ?" in line


@pytest.mark.parametrize("words", [["bundles", "list"], ["gc"]])
def test_a_folder_that_no_service_used_is_not_found(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--data", str(tmp_path / "mistyped")]) == 4
    assert f"zo-cloud {' '.join(words)} --data FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists()


def test_gc_tells_what_it_would_delete_and_then_deletes_it(shelf: Shelf, manifest: Descriptor, call: Call) -> None:
    shelf.publish("team/tiny", "latest", manifest)
    call("bundles", "delete", f"team/tiny@{manifest.digest}")
    count = len(list(shelf.layout.blobs.iterdir()))
    assert call("gc", "--dry-run")["waiting_blobs"] == count
    dry = call("gc", "--dry-run", "--grace-hours", "0")
    assert (dry["is_dry_run"], dry["blobs"]) == (True, count)
    assert call("gc", "--grace-hours", "0")["blobs"] == count
    assert list(shelf.layout.blobs.iterdir()) == []
