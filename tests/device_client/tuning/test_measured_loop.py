"""A measured step in the loop: it finds the scale, goes back where validation got worse, and resumes bit for bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bowl_run import COUNT, HEADER, MEASURED, Bowl, Historian, Killed, Recorder, files, tune
from torch import Tensor

from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import read_journal
from device_client.tuning.loop import BEST, LAST
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.spsa import descend
from shared.perturbation import perturbation

LONG = replace(MEASURED, steps=200)


class Steep(Bowl):
    """A bowl in another unit of length: its Hessian is ``steepness`` times as large, its loss at the start the same."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self._unit = math.sqrt(steepness)

    def loss(self, theta: Tensor, batch: float) -> float:
        return super().loss(theta * self._unit, batch)

    def validate(self, theta: Tensor) -> Evaluation:
        return super().validate(theta * self._unit)


class Uneven(Bowl):
    """Its validation loss has nothing to do with its training loss."""

    def validate(self, theta: Tensor) -> Evaluation:
        self.validations += 1
        return Evaluation(2 + math.sin(1000 * float(theta.sum())), None, 7)


@pytest.mark.parametrize("steepness", [10.0, 1e3, 1e5])
def test_one_rule_learns_whatever_the_curvature_is(tmp_path: Path, steepness: float) -> None:
    outcome = tune(tmp_path, Steep(steepness), settings=LONG)
    assert outcome.validations[0].loss == 3.0
    assert outcome.validations[200].loss < 0.5


def test_it_records_the_curvature_that_the_closed_form_has(tmp_path: Path) -> None:
    """H is 100 times the identity in six dimensions: a sample of zᵀHz has the mean 600 and the deviation 346."""
    tune(tmp_path, Steep(100.0), settings=LONG)
    samples = [record.curvature for record in read_journal(tmp_path / "journal.bin")[1]]
    found = torch.tensor([sample for sample in samples if math.isfinite(sample)])
    assert len(found) == 8 + 12  # the warm-up, and every 16th from 16 to 192
    assert float(found.mean()) == pytest.approx(600, abs=4 * 346 / math.sqrt(20))


def test_a_rise_of_the_validation_loss_goes_back_to_the_best_values(tmp_path: Path) -> None:
    class Rising(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            self.validations += 1
            return Evaluation([3.0, 2.0, 2.99, 1.9, 1.8][self.validations - 1], None, 7)

    kept: dict[int, Tensor] = {}

    class Keeper(Recorder):
        def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
            snapshot = RunDirectory(tmp_path).read_theta(LAST)
            assert snapshot is not None
            kept[steps_done] = snapshot.theta

    observer = Keeper()
    tune(tmp_path, Rising(), settings=MEASURED, observer=observer)
    theta = kept[10]
    for record in read_journal(tmp_path / "journal.bin")[1][20:30]:
        z = torch.from_numpy(perturbation(HEADER.seed, record.step, 0, COUNT))
        theta = descend(theta, [z], record.gradients, record.lr)
    assert torch.equal(kept[30], theta)
    assert observer.notes == ["validation got worse: back to the values of step 10, steps half as long"]


def test_every_state_the_files_can_be_left_in_resumes_bit_for_bit_over_roll_backs(tmp_path: Path) -> None:
    historian = Historian(tmp_path / "whole")
    tune(tmp_path / "whole", Uneven(), settings=MEASURED, observer=historian)
    assert any("back to the values" in note for note in historian.notes)
    expected = files(tmp_path / "whole")
    for state in historian.history:
        tune(state, Uneven(), settings=MEASURED)
        assert files(state) == expected


@pytest.mark.parametrize("lost", [LAST, "metrics.jsonl"])
def test_a_lost_file_is_made_up_for_over_roll_backs(tmp_path: Path, lost: str) -> None:
    whole = tune(tmp_path, Uneven(), settings=MEASURED)
    expected = files(tmp_path)
    (tmp_path / lost).unlink()
    again = tune(tmp_path, Uneven(), settings=MEASURED)
    assert torch.equal(again.last, whole.last)
    assert files(tmp_path) == expected


def test_best_values_that_are_not_those_on_record_are_made_again(tmp_path: Path) -> None:
    """Killed after step 20; its best values are then not those of its best step."""
    tune(tmp_path / "whole", settings=MEASURED)
    problem = Bowl()

    def die(call: int, loss: float) -> float:
        if call > 2 * 20 + 8 + 2 + 4:
            raise Killed
        return loss

    problem.fault = die
    with pytest.raises(Killed):
        tune(tmp_path / "killed", problem, settings=MEASURED)
    RunDirectory(tmp_path / "killed").write_theta(BEST, torch.zeros(COUNT), 0)
    tune(tmp_path / "killed", settings=MEASURED)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_the_last_values_are_those_that_were_validated_last(tmp_path: Path) -> None:
    """Where no step follows, there is nothing to go back for."""

    class Rising(Bowl):
        def validate(self, theta: Tensor) -> Evaluation:
            self.validations += 1
            return Evaluation([3.0, 2.0, 1.9, 1.8, 9.0][self.validations - 1], None, 7)

    outcome = tune(tmp_path, Rising(), settings=MEASURED)
    assert outcome.best_step == 30
    assert not torch.equal(outcome.last, outcome.best)
