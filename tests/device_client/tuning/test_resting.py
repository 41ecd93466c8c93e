"""A run that waits: what it says, how long, and that its bits are those of a run that did not wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bowl_run import COUNT, HEADER, SETTINGS, Bowl, Recorder, engine_of, files, tune
from torch import zeros

from device_client.tuning.journal import open_journal
from device_client.tuning.loop import TuningLoop
from device_client.tuning.loop_interface import Outcome
from device_client.tuning.resting import MachineRest
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.work_seconds import read_work_seconds

SHORT = replace(SETTINGS, steps=6, validate_every=3)


class Time:
    """A clock that moves where somebody sleeps, and a second at each look."""

    def __init__(self, per_look: float = 0.0) -> None:
        self.now, self.slept, self._per_look = 0.0, 0.0, per_look

    def clock(self) -> float:
        self.now += self._per_look
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def rest(time: Time, reasons: Iterator[str | None], said: list[str]) -> MachineRest:
    return MachineRest(lambda: next(reasons, None), said.append, time.clock, time.sleep)


def test_it_waits_until_the_reason_is_gone_and_says_for_how_long() -> None:
    time, said = Time(), list[str]()
    waiting = rest(time, iter(["the battery is low"] * 150), said)
    assert waiting.is_due()
    assert waiting.wait(None) == time.slept == 750
    assert said == [
        "waiting: the battery is low; Ctrl-C stops, and the same command continues",
        "waiting for 10 min: the battery is low; Ctrl-C stops, and the same command continues",
        "continuing after a pause of 12 min",
    ]
    assert not waiting.is_due()


def test_it_waits_no_longer_than_it_may() -> None:
    time = Time()
    waiting = rest(time, iter(["hot"] * 1000), [])
    assert waiting.is_due()
    assert waiting.wait(12.0) == 12


def test_the_machine_is_looked_at_every_few_seconds_however_quick_the_steps_are() -> None:
    time = Time(per_look=0.5)
    looks = []
    waiting = MachineRest(lambda: looks.append(0), [].append, time.clock, time.sleep)
    assert not any(waiting.is_due() for _ in range(40))
    assert len(looks) == 4  # in 20 seconds, one every 5


def tune_resting(
    folder: Path, waiting: MachineRest, time: Time, budget: float | None = None, observer: Recorder | None = None
) -> Outcome:
    run = RunDirectory(folder)
    run.create()
    bowl = Bowl()
    with open_journal(run.journal, HEADER) as journal:
        return TuningLoop(
            bowl, engine_of(bowl, SHORT), zeros(COUNT), SHORT, journal, run, observer or Recorder(), time.clock, budget,
            rest=waiting,
        ).run()  # fmt: skip


def test_a_run_that_waited_has_the_same_bits_and_its_pauses_are_no_work(tmp_path: Path) -> None:
    tune(tmp_path / "whole", settings=SHORT)
    time = Time(per_look=0.01)
    reasons = iter(["busy", "busy", None] * 50)
    outcome = tune_resting(tmp_path / "paused", rest(time, reasons, []), time)
    assert time.slept >= 10
    assert outcome.paused_seconds == pytest.approx(time.slept, abs=1)
    assert files(tmp_path / "paused") == files(tmp_path / "whole")
    worked = read_work_seconds(RunDirectory(tmp_path / "paused"))
    assert [steps for steps, _ in worked] == [0, 3, 6]
    assert worked[-1][1] < 1


def test_everything_is_on_the_disk_while_a_run_waits(tmp_path: Path) -> None:
    """Whatever ends a pause, such as an empty battery, the run continues behind its last step."""
    time = Time(per_look=2.0)
    looks = iter([None, "low"])

    class PowerCut(Exception):
        pass

    def cut(_seconds: float) -> None:
        raise PowerCut

    waiting = MachineRest(lambda: next(looks), [].append, time.clock, cut)
    observer = Recorder()
    with pytest.raises(PowerCut):
        tune_resting(tmp_path, waiting, time, observer=observer)
    snapshot = RunDirectory(tmp_path).read_theta("last.safetensors")
    assert snapshot is not None
    assert snapshot.steps_done == len(observer.steps) > 0


def test_a_time_budget_counts_pauses_and_ends_one(tmp_path: Path) -> None:
    time = Time()
    outcome = tune_resting(tmp_path, rest(time, iter(["hot"] * 1000), []), time, budget=60.0)
    assert (outcome.stopped_by, outcome.steps_done, time.now) == ("time budget", 0, 60)
