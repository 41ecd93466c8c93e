"""A finished run's θ follows from its journal and validations alone, bit for bit."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bowl_run import COUNT, HEADER, MEASURED, SETTINGS, Bowl, Recorder, engine_of, files
from torch import Tensor

from device_client.model.backends.choose import REFERENCE
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import JournalHeader, open_journal
from device_client.tuning.loop import Outcome, TuningLoop
from device_client.tuning.replay import replay
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.settings import TuneSettings
from shared.errors import IntegrityError

START = torch.tensor([1.0] * (COUNT - 1) + [-1.0])
"""Its root mean square is 1, as `engine_of` takes it to be."""


class Uneven(Bowl):
    """Its validation loss has nothing to do with its training loss, so that the run goes back again and again."""

    def validate(self, theta: Tensor) -> Evaluation:
        return Evaluation(2 + math.sin(1000 * float(theta.sum())), None, 7)


def header_of(settings: TuneSettings) -> JournalHeader:
    return replace(HEADER, seed=settings.seed, queries=settings.queries, is_measured=settings.is_step_measured)


def tuned(folder: Path, problem: Bowl, settings: TuneSettings) -> tuple[Outcome, list[str]]:
    run, recorder = RunDirectory(folder), Recorder()
    run.create()
    with open_journal(run.journal, header_of(settings)) as journal:
        engine = engine_of(problem, settings)
        outcome = TuningLoop(problem, engine, START, settings, journal, run, recorder, lambda: 0.0).run()
    return outcome, recorder.notes


def replayed(run: Path, folder: Path, settings: TuneSettings) -> Outcome:
    folder.mkdir()
    shutil.copyfile(run / "journal.bin", folder / "journal.bin")
    validations = [(line["steps_done"], Evaluation.from_json(line)) for line in RunDirectory(run).metrics()]
    return replay(RunDirectory(folder), header_of(settings), validations, settings, START, REFERENCE)


@pytest.mark.parametrize(
    ("problem", "settings", "goes_back"),
    [
        (Bowl, SETTINGS, False),
        (Bowl, replace(SETTINGS, queries=3, decay="constant"), False),
        (Bowl, MEASURED, False),
        (Uneven, replace(MEASURED, steps=120), True),
        (Uneven, replace(SETTINGS, patience=2, steps=400), False),
    ],
)
def test_the_replayed_values_are_those_of_the_run(
    tmp_path: Path, problem: type[Bowl], settings: TuneSettings, goes_back: bool
) -> None:
    settings = replace(settings, seed=HEADER.seed)
    live, notes = tuned(tmp_path / "run", problem(), settings)
    again = replayed(tmp_path / "run", tmp_path / "again", settings)
    assert any("back to the values" in note for note in notes) == goes_back
    assert torch.equal(again.best, live.best)
    assert torch.equal(again.last, live.last)
    assert (again.best_step, again.steps_done, again.stopped_by) == (live.best_step, live.steps_done, live.stopped_by)
    assert again.steps_measured == 0
    assert files(tmp_path / "again") == files(tmp_path / "run")


@pytest.mark.parametrize("name", ["journal.bin", "metrics.jsonl"])
def test_a_step_or_validation_that_is_not_on_record_is_refused(tmp_path: Path, name: str) -> None:
    settings = replace(SETTINGS, seed=HEADER.seed)
    tuned(tmp_path / "run", Bowl(), settings)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(IntegrityError, match="lacks a step or a validation"):
        replayed(tmp_path / "run", tmp_path / "again", settings)
