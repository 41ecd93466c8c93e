"""The loop on a closed form: it learns, it resumes bit for bit, it gives up when it must."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bowl_run import COUNT, HEADER, MEASURED, SETTINGS, Bowl, Historian, Killed, Recorder, engine_of, files, tune
from torch import Tensor

from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import Journal, StepFlags, open_journal, read_journal
from device_client.tuning.loop import BEST, LAST
from device_client.tuning.run_directory import RunDirectory, load_theta
from device_client.tuning.settings import TuneSettings
from shared.errors import Diverged, ResourceError


@pytest.mark.parametrize("step", [{"lr": 0.05}, {"lr": None, "step_length": 0.1}, {"lr": None}])
@pytest.mark.parametrize("queries", [1, 3])
def test_it_learns(tmp_path: Path, step: dict[str, float | None], queries: int) -> None:
    outcome = tune(tmp_path, settings=replace(SETTINGS, steps=200, queries=queries, **step))
    start, end = outcome.validations[0].loss, outcome.validations[200].loss
    assert start == 3.0  # ‖0 − 1‖² / 2 in six dimensions
    assert end < 0.3
    assert (outcome.steps_done, outcome.stopped_by) == (200, "steps")


def test_theta_follows_from_the_journal_alone(tmp_path: Path) -> None:
    """Replay by hand: θ ← θ − η·g·z over the records equals the live run bit for bit."""
    from shared.perturbation import perturbation

    outcome = tune(tmp_path)
    header, records = read_journal(tmp_path / "journal.bin")
    theta = torch.zeros(COUNT)
    for record in records:
        z = torch.from_numpy(perturbation(header.seed, record.step, 0, COUNT))
        theta = theta - z * (torch.tensor(record.lr) * torch.tensor(record.gradients[0])).item()
    assert torch.equal(theta, outcome.last)


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, queries=2), MEASURED])
def test_a_run_killed_at_any_loss_resumes_bit_for_bit(tmp_path: Path, settings: TuneSettings) -> None:
    bowl = Bowl()
    whole = tune(tmp_path / "whole", bowl, settings=settings)
    calls_in_all = bowl.loss_calls
    for killed_at in range(1, calls_in_all, 13):

        def die(call: int, loss: float, at: int = killed_at) -> float:
            if call == at:
                raise Killed
            return loss

        folder = tmp_path / f"killed-{killed_at}"
        problem = Bowl()
        problem.fault = die
        with pytest.raises(Killed):
            tune(folder, problem, settings=settings)
        again = tune(folder, settings=settings)
        assert torch.equal(again.last, whole.last)
        assert torch.equal(again.best, whole.best)
        assert files(folder) == files(tmp_path / "whole")


def test_a_run_killed_between_any_two_writes_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Every state that the files can be left in: each file as old as its last write before the kill."""
    historian = Historian(tmp_path / "whole")
    tune(tmp_path / "whole", observer=historian)
    assert len(historian.history) == 40 + 5
    expected = files(tmp_path / "whole")
    for state in historian.history:
        tune(state)
        assert files(state) == expected


@pytest.mark.parametrize("lost", [LAST, "metrics.jsonl"])
def test_a_lost_snapshot_or_metrics_file_is_made_up_for_from_the_journal(tmp_path: Path, lost: str) -> None:
    whole = tune(tmp_path)
    journal = (tmp_path / "journal.bin").read_bytes()
    (tmp_path / lost).unlink()
    again = tune(tmp_path)
    assert torch.equal(again.last, whole.last)
    assert again.validations == whole.validations
    assert (tmp_path / "journal.bin").read_bytes() == journal


def write_junk(path: Path) -> None:
    path.write_bytes(b"junk")


def write_other_count(path: Path) -> None:
    RunDirectory(path.parent).write_theta(path.name, torch.zeros(COUNT + 1), 10)


@pytest.mark.parametrize("damage", [write_junk, write_other_count])
def test_a_damaged_snapshot_is_made_up_for_from_the_journal(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    tune(tmp_path)
    expected = files(tmp_path)
    damage(tmp_path / LAST)
    problem, observer = Bowl(), Recorder()
    again = tune(tmp_path, problem, observer=observer)
    assert (problem.loss_calls, problem.validations) == (0, 0)
    assert any("repeating the run from its start" in note for note in observer.notes)
    assert files(tmp_path) == expected
    assert again.steps_done == 40


def test_no_forward_pass_is_repeated_but_for_unrecorded_steps(tmp_path: Path) -> None:
    problem = Bowl()

    def die(call: int, loss: float) -> float:
        if call == 51:
            raise Killed
        return loss

    problem.fault = die
    with pytest.raises(Killed):
        tune(tmp_path, problem)
    again, observer = Bowl(), Recorder()
    tune(tmp_path, again, observer=observer)
    assert observer.steps == list(range(25, 40))
    assert (again.loss_calls, again.validations) == (30, 2)
    assert observer.notes == ["going on after step 25 of 40"]


def test_a_finished_run_is_repeated_without_a_forward_pass(tmp_path: Path) -> None:
    first = tune(tmp_path)
    before = files(tmp_path)
    problem = Bowl()
    second = tune(tmp_path, problem)
    assert (problem.loss_calls, problem.validations) == (0, 0)
    assert torch.equal(first.last, second.last)
    assert files(tmp_path) == before


def test_the_best_values_are_those_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    class Rising(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            self.validations += 1
            return Evaluation([3.0, 2.0, 1.0, 2.5, 2.0][self.validations - 1], None, 7)

    outcome = tune(tmp_path, Rising())
    assert outcome.best_step == 20
    assert torch.equal(load_theta(tmp_path), outcome.best)
    assert not torch.equal(outcome.best, outcome.last)


def test_where_nothing_gets_better_the_bundles_own_values_are_best(tmp_path: Path) -> None:
    outcome = tune(tmp_path, settings=replace(SETTINGS, lr=0.0))
    assert outcome.best_step == 0
    assert torch.equal(outcome.best, torch.zeros(COUNT))
    assert torch.equal(outcome.last, torch.zeros(COUNT))


def test_it_stops_early_and_a_resumed_run_stops_at_the_same_step(tmp_path: Path) -> None:
    class Stale(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            return Evaluation(1.0, None, 7)

    settings = replace(SETTINGS, patience=2)
    outcome = tune(tmp_path, Stale(), settings=settings)
    assert (outcome.steps_done, outcome.stopped_by, outcome.best_step) == (20, "early stop", 0)
    again = tune(tmp_path, Stale(), settings=settings)
    assert (again.steps_done, again.stopped_by) == (20, "early stop")


def test_a_time_budget_stops_the_run_and_the_same_call_goes_on(tmp_path: Path) -> None:
    ticks = itertools.count()
    first = tune(tmp_path / "paused", time_budget_seconds=14.5, clock=lambda: float(next(ticks)))
    assert first.stopped_by == "time budget"
    assert 0 < first.steps_done < 40
    snapshot = RunDirectory(tmp_path / "paused").read_theta(LAST)
    assert snapshot is not None
    assert snapshot.steps_done == first.steps_done
    observer = Recorder()
    second = tune(tmp_path / "paused", observer=observer)
    assert observer.notes == [f"going on after step {first.steps_done} of 40"]
    assert torch.equal(second.last, tune(tmp_path / "whole").last)


@pytest.mark.parametrize("steps", [35, 100])
@pytest.mark.parametrize("budget", [2.5, 14.5, 23.5])
def test_a_run_stopped_by_its_time_budget_leaves_the_same_files_as_one_that_was_not(
    tmp_path: Path, steps: int, budget: float
) -> None:
    """Validations off the schedule would count towards the best values and the patience."""

    class Uneven(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            return Evaluation(2 + math.sin(1000 * float(theta.sum())), None, 7)

    settings = replace(SETTINGS, steps=steps, patience=2)
    whole = tune(tmp_path / "whole", Uneven(), settings=settings)
    stopped = 0
    while True:
        ticks = itertools.count()
        outcome = tune(
            tmp_path / "paused", Uneven(), settings=settings, time_budget_seconds=budget,
            clock=lambda ticks=ticks: float(next(ticks)),
        )  # fmt: skip
        if outcome.stopped_by != "time budget":
            break
        stopped += 1
    assert stopped >= 1
    assert (outcome.steps_done, outcome.best_step) == (whole.steps_done, whole.best_step)
    assert outcome.validations == whole.validations
    assert files(tmp_path / "paused") == files(tmp_path / "whole")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_and_says_so(tmp_path: Path, bad: float) -> None:
    problem = Bowl()
    problem.fault = lambda call, loss: bad if call == 5 else loss
    outcome = tune(tmp_path, problem)
    skipped = [record for record in outcome.records if StepFlags.SKIPPED in record.flags]
    assert [(record.step, record.lr) for record in skipped] == [(2, 0.0)]
    assert math.isnan(skipped[0].gradients[0])
    assert torch.equal(tune(tmp_path).last, outcome.last)


def test_ten_skipped_steps_in_a_row_are_a_divergence(tmp_path: Path) -> None:
    problem = Bowl()
    problem.fault = lambda call, loss: math.nan if call > 30 else loss
    with pytest.raises(Diverged, match="not finite in 10 steps in a row at step 24") as caught:
        tune(tmp_path, problem)
    assert caught.value.exit_code == 10
    assert "--lr" in str(caught.value)


def test_a_learning_rate_that_diverges_keeps_the_best_values(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="averages") as caught:
        tune(tmp_path, settings=replace(SETTINGS, lr=3.0, steps=200))
    assert caught.value.exit_code == 10
    assert torch.isfinite(load_theta(tmp_path)).all()
    with pytest.raises(Diverged) as again:
        tune(tmp_path, settings=replace(SETTINGS, lr=3.0, steps=200))
    assert str(again.value) == str(caught.value)


def test_a_bundle_whose_own_loss_is_not_finite_is_refused(tmp_path: Path) -> None:
    class Broken(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            return Evaluation(math.nan, 0.0, 7)

    for _ in range(2):
        with pytest.raises(Diverged, match="own loss"):
            tune(tmp_path, Broken())
    assert '"loss": null' in (tmp_path / "metrics.jsonl").read_text()


def test_out_of_memory_halves_the_micro_batch_and_measures_the_step_anew(tmp_path: Path) -> None:
    class Tight(Bowl):
        def loss(self, theta: Tensor, batch: float) -> float:
            if self.micro_batch_rows > 2 and self.loss_calls >= 3:
                raise torch.OutOfMemoryError
            return super().loss(theta, batch)

    problem, observer = Tight(), Recorder()
    problem.micro_batch_rows = 8
    outcome = tune(tmp_path / "tight", problem, observer=observer)
    assert problem.micro_batch_rows == 2
    assert len(observer.notes) == 2
    assert torch.equal(outcome.last, tune(tmp_path / "roomy").last)
    events = [json.loads(line) for line in (tmp_path / "tight" / "metrics.jsonl").read_text().splitlines()]
    assert [e["steps_done"] for e in events if e["kind"] == "fewer side by side"] == [1, 1]


@pytest.mark.parametrize("first_failing", [1, 3, 5])
def test_out_of_memory_in_a_validation_halves_the_micro_batch_and_validates_anew(
    tmp_path: Path, first_failing: int
) -> None:
    class Tight(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            if self.micro_batch_rows > 2 and self.validations + 1 >= first_failing:
                raise torch.OutOfMemoryError
            return super().validate(theta)

    problem = Tight()
    problem.micro_batch_rows = 8
    outcome = tune(tmp_path / "tight", problem)
    assert problem.micro_batch_rows == 2
    assert outcome.validations == tune(tmp_path / "roomy").validations


def test_out_of_memory_with_one_sequence_is_a_resource_error(tmp_path: Path) -> None:
    class Hopeless(Bowl):
        def loss(self, theta: Tensor, batch: float) -> float:
            raise torch.OutOfMemoryError

    with pytest.raises(ResourceError, match="one sequence at a time") as caught:
        tune(tmp_path, Hopeless())
    assert caught.value.exit_code == 8


def test_an_interrupt_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    problem = Bowl()

    def interrupt(call: int, loss: float) -> float:
        if call == 30:
            raise KeyboardInterrupt
        return loss

    problem.fault = interrupt
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "cut", problem)
    assert torch.equal(tune(tmp_path / "cut").last, tune(tmp_path / "whole").last)


def test_a_lost_best_file_is_made_again_from_the_start(tmp_path: Path) -> None:
    tune(tmp_path)
    expected = files(tmp_path)
    (tmp_path / BEST).unlink()
    tune(tmp_path)
    assert files(tmp_path) == expected


def test_the_noise_is_reported(tmp_path: Path) -> None:
    outcome = tune(tmp_path)
    differences = sorted(2e-3 * abs(record.gradients[0]) for record in outcome.records)
    account = engine_of(Bowl(), SETTINGS).account(outcome.records)
    assert account["forward_passes"] == 80
    assert account["median_loss_difference"] == pytest.approx((differences[19] + differences[20]) / 2)


def test_a_snapshot_ahead_of_the_journal_is_not_used(tmp_path: Path) -> None:
    """A disk that lost the journal's last records but kept the snapshot: the run is replayed from its start."""
    whole = tune(tmp_path)
    data = (tmp_path / "journal.bin").read_bytes()
    (tmp_path / "journal.bin").write_bytes(data[: -5 * 22])
    assert torch.equal(tune(tmp_path).last, whole.last)


def test_a_journal_is_closed_when_the_loop_fails(tmp_path: Path) -> None:
    problem = Bowl()
    problem.fault = lambda _call, _loss: math.nan
    with pytest.raises(Diverged):
        tune(tmp_path, problem)
    journal: Journal = open_journal(tmp_path / "journal.bin", HEADER)
    with journal:
        assert len(journal.records) == 10
