"""A small fine-tune of the tiny bundle, for tests that need a whole run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_client.cli import main
from device_client.tasks.task_data import DataOptions
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import StepRecord
from device_client.tuning.planned_run import PlannedRun, plan_run
from device_client.tuning.settings import TuneSettings
from device_client.tuning.tune_run import MachineSettings, TuneReport, tune
from shared.bundle.read import Bundle

SETTINGS = TuneSettings(steps=12, batch_size=4, validate_every=4)


class Silent:
    def stepped(self, record: StepRecord) -> None:
        pass

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def write_rows(path: Path) -> Path:
    """Write twelve labelled rows and return the path."""
    words = [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("poor", "no")]
    lines = [json.dumps({"text": f"{word} {i}", "label": label}) for i in range(3) for word, label in words]
    path.write_text("\n".join(lines))
    return path


def planned(bundle: Bundle, rows: Path, settings: TuneSettings = SETTINGS) -> PlannedRun:
    options = DataOptions(data=rows, test=rows, validation_share=0.25)
    return plan_run(bundle, settings, options, runs=rows.parent / "runs")


def run(plan: PlannedRun, clock: Callable[[], float], **machine: object) -> TuneReport:
    return tune(plan, MachineSettings(device="cpu", **machine), Silent(), clock)  # type: ignore[arg-type]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    """Run a command in plain torch on the CPU; return its exit code, its JSON and what it said."""
    code = main([*words, "--device", "cpu", "--backend", "reference", "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err
