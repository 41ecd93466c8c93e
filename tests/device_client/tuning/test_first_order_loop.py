"""First-order steps in the loop, on a closed form: they learn, and a killed run ends with the same bits."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from device_client.tuning.adam import Adam
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.first_order import SNAPSHOT_EVERY, FirstOrder
from device_client.tuning.journal import JournalHeader, StepFlags, StepRecord, open_journal, read_journal
from device_client.tuning.loop import BEST, LAST, TuningLoop
from device_client.tuning.loop_interface import Outcome
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.settings import TuneSettings
from shared.errors import Diverged

COUNT = 5
HEADER = JournalHeader(
    seed=0, stream="none", distribution="none", sensitive_count=COUNT, queries=1, epsilon=0.0,
    bundle_digest="sha256:" + "0" * 64, settings_digest="sha256:" + "1" * 64,
)  # fmt: skip
SETTINGS = TuneSettings(gradient="first-order", steps=50, validate_every=25)


class Bowl:
    """L(θ, b) = ‖θ − 1‖² / 2 + b·θ₀, its gradient θ − 1 + b·e₀; batches alternate b = ±0.1."""

    def __init__(self, fault: Callable[[int], float] = lambda _call: 1.0, rows: int = 4) -> None:
        self.calls = 0
        self.rows = rows
        self._fault = fault

    def batch(self, step: int) -> float:
        return 0.1 * (-1) ** step

    def loss_and_gradient(self, theta: Tensor, batch: float) -> tuple[float, Tensor]:
        self.calls += 1
        factor = self._fault(self.calls)
        gradient = (theta - 1) * (1 + self.rows * 2**-22)  # what a micro-batch does to the last bits
        gradient[0] += batch
        return factor * float(((theta - 1) ** 2).sum() / 2 + batch * theta[0]), gradient

    def validate(self, theta: Tensor) -> Evaluation:
        return Evaluation(float(((theta - 1) ** 2).sum() / 2), None, 3)

    def shrink(self) -> bool:
        self.rows //= 2
        return self.rows > 0


class Silent:
    def __init__(self) -> None:
        self.history: list[Callable[[], None]] = []
        self.notes: list[str] = []

    def stepped(self, record: StepRecord) -> None:
        for look in self.history:
            look()

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        for look in self.history:
            look()

    def note(self, text: str) -> None:
        self.notes.append(text)


class Killed(Exception):
    """Stands for SIGKILL: nothing of the loop runs after it."""


def tune(
    folder: Path,
    bowl: Bowl | None = None,
    *,
    settings: TuneSettings = SETTINGS,
    observer: Silent | None = None,
    shrunk: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = lambda: 0.0,
    time_budget_seconds: float | None = None,
) -> Outcome:
    run, problem = RunDirectory(folder), bowl or Bowl()
    run.create()
    adam = Adam(COUNT, torch.device("cpu"))
    engine = FirstOrder(problem, problem.loss_and_gradient, adam, replace(settings, lr=0.1))
    with open_journal(run.journal, HEADER) as journal:
        return TuningLoop(
            problem,
            engine,
            torch.zeros(COUNT),
            settings,
            journal,
            run,
            observer or Silent(),
            clock,
            time_budget_seconds,
            shrunk,
        ).run()


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("journal.bin", "metrics.jsonl", LAST, BEST)}


def raising_at(call: int, error: type[BaseException]) -> Callable[[int], float]:
    def fault(now: int) -> float:
        if now == call:
            raise error
        return 1.0

    return fault


def test_it_learns_and_puts_loss_rate_and_norm_on_record(tmp_path: Path) -> None:
    outcome = tune(tmp_path)
    assert outcome.validations[0].loss == 2.5  # ‖0 − 1‖² / 2 in five dimensions
    assert outcome.validations[50].loss < 0.1
    first, second = outcome.records[:2]
    assert (first.clean_loss, first.lr) == (2.5, pytest.approx(0.1))
    assert first.gradients[0] == pytest.approx(math.sqrt(4 + 0.9**2))  # −1 in four coordinates, −0.9 in one
    assert second.lr == pytest.approx(0.1 * 49 / 50)
    assert outcome.records == read_journal(tmp_path / "journal.bin")[1]


def test_a_run_killed_at_any_step_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = tune(tmp_path / "whole")
    for killed_at in range(1, 51, 3):
        folder = tmp_path / f"killed-{killed_at}"
        with pytest.raises(Killed):
            tune(folder, Bowl(raising_at(killed_at, Killed)))
        again = tune(folder)
        assert torch.equal(again.last, whole.last)
        assert files(folder) == files(tmp_path / "whole")


def test_a_run_killed_between_any_two_writes_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Every state that the files can be left in: each file as old as its last write before the kill."""
    history: list[Path] = []

    def keep() -> None:
        history.append(tmp_path / f"state-{len(history)}")
        shutil.copytree(tmp_path / "whole", history[-1])

    historian = Silent()
    historian.history.append(keep)
    tune(tmp_path / "whole", observer=historian)
    assert len(history) == 50 + 3
    for state in history:
        tune(state)
        assert files(state) == files(tmp_path / "whole")


def test_a_kill_costs_the_steps_since_the_last_snapshot_at_most(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        tune(tmp_path, Bowl(raising_at(38, Killed)))
    assert len(read_journal(tmp_path / "journal.bin")[1]) == 37
    bowl, observer = Bowl(), Silent()
    outcome = tune(tmp_path, bowl, observer=observer)
    assert SNAPSHOT_EVERY == 10
    assert bowl.calls == outcome.steps_measured == 50 - 30
    assert observer.notes == ["going on after step 30 of 50"]


@pytest.mark.parametrize("lost", [LAST, "metrics.jsonl"])
def test_a_lost_snapshot_or_metrics_file_is_made_up_for_by_measuring_again(tmp_path: Path, lost: str) -> None:
    whole = tune(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    (tmp_path / "lost" / lost).unlink()
    assert torch.equal(tune(tmp_path / "lost").last, whole.last)
    assert files(tmp_path / "lost") == files(tmp_path / "whole")


def test_a_snapshot_without_moments_is_not_gone_on_from(tmp_path: Path) -> None:
    whole = tune(tmp_path)
    RunDirectory(tmp_path).write_theta(LAST, whole.last, 50)
    observer = Silent()
    assert torch.equal(tune(tmp_path, observer=observer).last, whole.last)
    assert observer.notes[0].startswith("a snapshot without Adam's moments")


@pytest.mark.parametrize("killed_at", [None, 14, 18, 33])
def test_fewer_rows_after_a_shortage_do_not_change_the_steps_before_it(tmp_path: Path, killed_at: int | None) -> None:
    """Memory runs out at step 13, before the snapshot of step 20; a kill later must not repeat steps 10 to 12."""
    rows = [4]

    def run(folder: Path, fault: Callable[[int], float]) -> Outcome:
        bowl = Bowl(fault, rows=rows[0])
        return tune(folder, bowl, shrunk=lambda: rows.__setitem__(0, bowl.rows))

    def shortage(call: int) -> float:
        if call == 14:
            raise MemoryError
        if killed_at is not None and call == killed_at + 2:  # one call failed
            raise Killed
        return 1.0

    uncut = tmp_path / "uncut"
    expected = run(uncut, raising_at(14, MemoryError))
    rows[0] = 4
    if killed_at is None:
        assert torch.equal(run(tmp_path / "again", shortage).last, expected.last)
        return
    with pytest.raises(Killed):
        run(tmp_path / "cut", shortage)
    assert rows == [2]
    assert torch.equal(run(tmp_path / "cut", lambda _call: 1.0).last, expected.last)
    assert files(tmp_path / "cut") == files(uncut)


def test_a_step_that_is_not_finite_is_skipped_and_moves_nothing(tmp_path: Path) -> None:
    outcome = tune(tmp_path, Bowl(lambda call: math.nan if call == 1 else 1.0), settings=replace(SETTINGS, steps=1))
    assert outcome.records[0].flags == StepFlags.SKIPPED
    assert outcome.records[0].lr == 0
    assert torch.equal(outcome.last, torch.zeros(COUNT))


def test_a_loss_that_is_never_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        tune(tmp_path, Bowl(lambda _call: math.nan))


def test_a_time_budget_leaves_no_trace(tmp_path: Path) -> None:
    whole = tune(tmp_path / "whole")
    for _ in range(6):
        ticks = iter(map(float, range(1000)))
        outcome = tune(tmp_path / "cut", clock=ticks.__next__, time_budget_seconds=12.0)
    assert outcome.stopped_by == "steps"
    assert torch.equal(outcome.last, whole.last)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_lost_best_file_is_made_again_from_the_start(tmp_path: Path) -> None:
    tune(tmp_path)
    expected = files(tmp_path)
    (tmp_path / BEST).unlink()
    tune(tmp_path)
    assert files(tmp_path) == expected
