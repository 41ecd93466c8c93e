"""A refused preparation leaves neither half a bundle nor an empty folder; work that was done stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cloud_service.commands.output_folder import removed_where_refused
from shared.bundle.layout import ImageLayout
from shared.errors import DiskError, UnsupportedModel

MakeCheckpoint = Callable[..., Path]


def make_and_refuse(folder: Path, *files: str) -> NoReturn:
    ImageLayout.create(folder)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    raise UnsupportedModel("no")


def refuse_after(folder: Path, *files: str) -> None:
    with pytest.raises(UnsupportedModel), removed_where_refused(folder):
        make_and_refuse(folder, ".workspace/input.json", ".workspace.lock", *files)


def test_a_new_folder_without_work_is_removed(tmp_path: Path) -> None:
    refuse_after(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("work", ["blobs/sha256/ab", ".workspace/fisher-0.bin"])
def test_work_that_was_done_stays(tmp_path: Path, work: str) -> None:
    refuse_after(tmp_path / "out", work)
    assert (tmp_path / "out" / work).exists()


def test_a_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refuse_after(tmp_path / "out")
    assert (tmp_path / "out").is_dir()


def test_a_folder_that_was_never_made_is_not_missed(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="full"), removed_where_refused(tmp_path / "out"):
        raise DiskError("full")


def test_the_command_leaves_nothing_of_a_model_that_devices_would_refuse(
    make_checkpoint: MakeCheckpoint, text: Path, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")
    output = tmp_path / "out"
    arguments = [str(folder), "--output", str(output), "--calibration-text", str(text), "--sequences", "4", "--quiet"]
    command = [
        sys.executable,
        "-c",
        "import sys; from cloud_service.cli import main; sys.exit(main())",
        "prepare",
        *arguments,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "chat template fails: Unexpected end of template" in ended.stderr
    assert "or remove it: conversations then become plain lines" in ended.stderr
    assert not output.exists()


def prepare(folder: Path, output: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from cloud_service.cli import main; sys.exit(main())"
    arguments = [str(folder), "--output", str(output), "--quiet", *words]
    return subprocess.run(
        [sys.executable, "-c", program, "prepare", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that lets nobody make folders")
def test_a_signing_key_that_cannot_be_made_and_an_output_are_refused_before_any_work(tmp_path: Path) -> None:
    no_model = tmp_path / "absent"  # it would be looked for afterwards

    ended = prepare(no_model, tmp_path / "out", "--signing-key", "/proc/zo/key.pem")
    assert (ended.returncode, "/proc/zo/key.pem cannot be written" in ended.stderr) == (7, True)
    assert not (tmp_path / "out").exists()

    ended = prepare(no_model, Path("/proc/zo"), "--signing-key", str(tmp_path / "key.pem"))
    assert (ended.returncode, "/proc/zo" in ended.stderr) == (7, True)
    assert "unexpected" not in ended.stderr
