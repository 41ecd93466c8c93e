"""The loop on a closed form, for tests of what it does between two passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from device_client.model.backends.choose import REFERENCE
from device_client.model.points import Point
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import JournalHeader, StepRecord, open_journal
from device_client.tuning.loop import BEST, LAST, TuningLoop
from device_client.tuning.loop_interface import Outcome
from device_client.tuning.measured_step import MeasuredStep
from device_client.tuning.perturbations import PerturbationStream, drawing_of
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.schedules import ChosenScale, Scale, StepSizeSchedule
from device_client.tuning.settings import TuneSettings
from device_client.tuning.zeroth_order import ZerothOrder

COUNT = 6
HEADER = JournalHeader(
    seed=11, stream="s", distribution="gaussian", sensitive_count=COUNT, queries=1, epsilon=1e-3,
    bundle_digest="sha256:" + "0" * 64, settings_digest="sha256:" + "1" * 64,
)  # fmt: skip
SETTINGS = TuneSettings(steps=40, epsilon=1e-3, validate_every=10, lr=0.05)
MEASURED = replace(SETTINGS, lr=None)


class Bowl:
    """L(θ, b) = ‖θ − 1‖² / 2 + b·θ₀; batches alternate b = ±0.1; the validation loss has b = 0."""

    def __init__(self) -> None:
        self.loss_calls = 0
        self.validations = 0
        self.fault: Callable[[int, float], float] = lambda _call, loss: loss
        self.micro_batch_rows = 1

    def batch(self, step: int) -> float:
        return 0.1 * (-1) ** step

    def losses(self, thetas: Iterable[Point], batch: float) -> Tensor:
        return torch.tensor([[self.loss(theta[:], batch)] for theta in thetas], dtype=torch.float64)

    def loss(self, theta: Tensor, batch: float) -> float:
        self.loss_calls += 1
        return self.fault(self.loss_calls, float(((theta.double() - 1) ** 2).sum() / 2 + batch * theta[0]))

    def validate(self, theta: Tensor) -> Evaluation:
        self.validations += 1
        return Evaluation(float(((theta.double() - 1) ** 2).sum() / 2), 0.5, 7)

    def shrink(self) -> bool:
        self.micro_batch_rows //= 2
        return self.micro_batch_rows > 0


class Recorder:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.validated_at: list[int] = []
        self.notes: list[str] = []

    def stepped(self, record: StepRecord) -> None:
        self.steps.append(record.step)

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        self.validated_at.append(steps_done)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Historian(Recorder):
    """Keeps a copy of a run's folder at every step and validation: each file as old as its last write."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._run = run
        self.history: list[Path] = []

    def stepped(self, record: StepRecord) -> None:
        super().stepped(record)
        self._keep()

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        super().validated(steps_done, evaluation, is_best=is_best)
        self._keep()

    def _keep(self) -> None:
        self.history.append(self._run.parent / f"state-{len(self.history)}")
        shutil.copytree(self._run, self.history[-1])


class Killed(Exception):
    """Stands for SIGKILL: nothing of the loop runs after it."""


def tune(
    folder: Path,
    problem: Bowl | None = None,
    *,
    settings: TuneSettings = SETTINGS,
    observer: Recorder | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    time_budget_seconds: float | None = None,
) -> Outcome:
    """Tune, or go on, in a folder."""
    run = RunDirectory(folder)
    run.create()
    bowl = problem or Bowl()
    header = replace(HEADER, queries=settings.queries, is_measured=settings.is_step_measured)
    with open_journal(run.journal, header) as journal:
        loop = TuningLoop(
            bowl, engine_of(bowl, settings), torch.zeros(COUNT), settings, journal, run, observer or Recorder(), clock,
            time_budget_seconds,
        )  # fmt: skip
        return loop.run()


def engine_of(bowl: Bowl, settings: TuneSettings) -> ZerothOrder[float]:
    """Return what makes the steps of a run."""
    stream = PerturbationStream(HEADER.seed, COUNT, drawing_of("gaussian", REFERENCE), torch.device("cpu"))
    scale: Scale = ChosenScale(settings, COUNT)
    if settings.is_step_measured:
        scale = MeasuredStep(settings, value_rms=1.0)
    return ZerothOrder(bowl, stream, StepSizeSchedule(settings, scale), settings)


def files(folder: Path) -> dict[str, bytes]:
    """Return what a run left."""
    return {name: (folder / name).read_bytes() for name in ("journal.bin", "metrics.jsonl", LAST, BEST)}
