"""The fingerprint of a preparation that calibrates on task rows covers the rows and how they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from cloud_service.cli import build_parser
from cloud_service.commands.prepare import request_of
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput, resolve
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy, TextSource
from shared.errors import InvalidRequest

HEADER = "sentence\tlabel\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A task's rows and a folder that is a model by the names of its files."""
    (tmp_path / "model").mkdir()
    safetensors.numpy.save_file({"w": np.zeros(1, np.float16)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_text(HEADER + "good\t1\n")
    (tmp_path / "SST-2" / "validation.tsv").write_text(HEADER + "bad\t0\n")
    return tmp_path


def resolved(folder: Path, *options: str) -> ResolvedInput:
    command = ["prepare", str(folder / "model"), "--output", "x", *options]
    request = request_of(build_parser().parse_args(command))
    return resolve(NamedInput.of_preparation(request), SourcePolicy(allow_any_local=True), SilentProgress())


def on_sst2(folder: Path) -> ResolvedInput:
    return resolved(folder, "--calibration-text", str(folder), "--calibration-task", "sst-2")


def test_the_training_rows_are_the_calibration_and_c4_the_evaluation(folder: Path) -> None:
    found = on_sst2(folder)
    assert found.calibration == TextSource(folder / "SST-2" / "train.tsv", "SST-2")
    assert found.evaluation == TextSource()


def test_other_rows_make_another_fingerprint(folder: Path) -> None:
    before = on_sst2(folder).fingerprint
    (folder / "SST-2" / "train.tsv").write_text(HEADER + "good\t0\n")
    assert on_sst2(folder).fingerprint != before


def test_files_that_are_not_read_do_not_matter(folder: Path) -> None:
    before = on_sst2(folder).fingerprint
    (folder / "SST-2" / "validation.tsv").write_text(HEADER)
    (folder / "RTE").mkdir()
    assert on_sst2(folder).fingerprint == before


@pytest.mark.parametrize(
    "options",
    [("--template", "{text}: {label}"), ("--label-words", "1=yes,0=no"), ("--seed", "1"), ("--sequences", "2")],
)
def test_how_own_rows_are_read_makes_another_fingerprint(folder: Path, options: tuple[str, ...]) -> None:
    (folder / "rows.jsonl").write_text('{"text": "a", "label": 1}\n')
    plain = ("--calibration-text", str(folder / "rows.jsonl"), "--calibration-task", "rows")
    assert resolved(folder, *plain).fingerprint != resolved(folder, *plain, *options).fingerprint


def test_label_words_that_are_none_are_a_wrong_call(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="needed: label=word,label=word"):
        resolved(folder, "--label-words", "negative")
