"""Files of a run that a disk truncated or changed at any byte: made up for, or refused by name; never used."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bowl_run import BEST, COUNT, LAST, SETTINGS, Recorder, files, tune

from device_client.tuning.run_directory import RunDirectory, load_theta
from shared.errors import IntegrityError

SHORT = replace(SETTINGS, steps=3, validate_every=3)


def flipped(data: bytes) -> Iterator[bytes]:
    """Yield the data with one bit changed, once for each byte: another bit in each."""
    for offset in range(len(data)):
        changed = bytearray(data)
        changed[offset] ^= 1 << (offset * 5 % 8)
        yield bytes(changed)


def truncated(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


BOTH = pytest.mark.parametrize("damage", [flipped, truncated])


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A folder for many runs, in memory where there is such a file system: each run flushes its files to the disk."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of one's own is made in it
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bowl") / "finished"
    tune(folder, settings=SHORT)
    return folder


@BOTH
@pytest.mark.parametrize("name", ["journal.bin", "metrics.jsonl", LAST, BEST])
def test_a_damaged_file_of_a_run_is_made_up_for_or_refused(
    finished: Path, folders: Path, name: str, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    whole = files(finished)
    refused = []
    for number, data in enumerate(damage(whole[name])):
        folder = folders / str(number)
        shutil.copytree(finished, folder)
        (folder / name).write_bytes(data)
        try:
            tune(folder, settings=SHORT)
        except IntegrityError as error:
            refused.append(error)
        else:
            assert files(folder) == whole, f"case {number}"
        shutil.rmtree(folder)
    assert all(name in error.found and error.next_step for error in refused)
    is_refused = (name, damage) in ((("metrics.jsonl", flipped)), ("journal.bin", flipped))
    assert bool(refused) == is_refused


@BOTH
def test_a_damaged_json_file_is_refused_or_says_the_same(
    tmp_path: Path, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    run = RunDirectory(tmp_path)
    content = {"stopped_by": "steps", "loss": 0.345, "rows": [1, 20], "none": None, "θ": "text"}
    run.write_json("result.json", content)
    path = tmp_path / "result.json"
    for data in damage(path.read_bytes()):
        path.write_bytes(data)
        try:
            found = run.read_json("result.json")
        except IntegrityError:
            continue
        assert found == content


@BOTH
def test_damaged_values_are_refused_or_are_the_same_bits(
    tmp_path: Path, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    run = RunDirectory(tmp_path, {"method": "sparse"})
    theta = torch.linspace(-1, 1, COUNT)
    run.write_theta(BEST, theta, 7, {"first": torch.tensor([0.5])})
    for data in damage((tmp_path / BEST).read_bytes()):
        (tmp_path / BEST).write_bytes(data)
        try:
            found = load_theta(tmp_path)
        except IntegrityError:
            continue
        assert torch.equal(found, theta)


def test_files_of_an_earlier_release_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"a": 1}))
    assert RunDirectory(tmp_path).read_json("result.json") == {"a": 1}


@pytest.mark.parametrize("lost", ["checksum", "checked_by"])
def test_an_object_with_half_of_its_checksum_is_damaged(tmp_path: Path, lost: str) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("result.json", {"a": 1})
    fields = json.loads((tmp_path / "result.json").read_text())
    del fields[lost]
    (tmp_path / "result.json").write_text(json.dumps(fields))
    with pytest.raises(IntegrityError, match="damaged"):
        run.read_json("result.json")


def test_a_person_reads_that_steps_are_made_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    journal = bytearray((tmp_path / "run" / "journal.bin").read_bytes())
    journal[-30] ^= 1  # in the second of three records of 22 bytes
    (tmp_path / "run" / "journal.bin").write_bytes(journal)
    observer = Recorder()
    tune(tmp_path / "run", settings=SHORT, observer=observer)
    assert "the journal is damaged after step 1: 2 steps are made again" in observer.notes
    assert files(tmp_path / "run") == files(finished)


def test_lost_or_damaged_best_values_are_made_again(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / BEST).unlink()
    observer = Recorder()
    tune(tmp_path / "run", settings=SHORT, observer=observer)
    assert "best.safetensors is damaged or missing: repeating the run from its start" in observer.notes
    assert files(tmp_path / "run") == files(finished)
