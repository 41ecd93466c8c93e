"""A whole first-order fine-tune of the tiny bundle: what it writes, and when it is offered."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from killed_run import kill_at_step
from tiny_bundle import TinyBundle
from tiny_run import SETTINGS, Silent, planned, run

from device_client.commands.runs_list import describe
from device_client.model.loader import load_model
from device_client.planning.tuned_blocks import tuned_blocks
from device_client.tuning.journal import StepRecord, read_journal
from device_client.tuning.planned_run import PlannedRun
from device_client.tuning.run_directory import RunDirectory, load_theta
from device_client.tuning.tune_run import MachineSettings, tune
from device_client.tuning.tuned_values import answer_as_tuned
from shared.bundle.read import Bundle
from shared.errors import Conflict, ResourceError

FIRST_ORDER = dataclasses.replace(SETTINGS, gradient="first-order", lr=0.02)
UPPER = dataclasses.replace(FIRST_ORDER, blocks="upper:1")
SAME_BYTES = ("journal.bin", "metrics.jsonl", "machine.json", "last.safetensors", "best.safetensors", "result.json")


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_it_lowers_the_loss_and_accounts_for_its_steps(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows, FIRST_ORDER), clock)

    header, records = read_journal(report.run / "journal.bin")
    assert (header.stream, header.queries, len(records)) == ("none", 1, 12)
    assert records[-1].clean_loss < records[0].clean_loss
    assert all(record.gradients[0] > 0 for record in records)
    result = report.result
    assert result["validation"]["best"]["loss"] < result["validation"]["bundle"]["loss"]
    assert (result["steps_done"], result["forward_passes"]) == (12, 36)
    assert "median_loss_difference" not in result
    assert report.resources["points_at_once"] == 1
    assert "noise_floor" not in report.resources
    snapshot = RunDirectory(report.run).read_theta("last.safetensors")
    assert snapshot is not None
    assert snapshot.state["adam_steps"].tolist() == [12]
    assert load_theta(report.run).shape == (bundle.config.sensitive_count,)


def test_it_is_listed_with_its_steps_and_losses(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows, FIRST_ORDER), clock)
    found = describe(report.run)
    assert (found["state"], found["steps_done"], found["steps"]) == ("finished", 12, 12)
    assert found["validation"] == report.result["validation"]
    assert (report.run / "loss.svg").read_bytes().startswith(b"<?xml")


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, FIRST_ORDER)
    whole = run(plan, clock, micro_batch_rows=3)
    shutil.move(whole.run, whole.run.with_name("whole"))
    for _ in range(4):
        again = run(plan, clock, micro_batch_rows=3, time_budget_seconds=6.0)
    assert again.result["stopped_by"] == "steps"
    for name in ("journal.bin", "machine.json", "last.safetensors", "best.safetensors", "result.json"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()


class Interrupting(Silent):
    """Ends the process's part of a run as a kill would, once a step is on record: no snapshot is written then."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, record: StepRecord) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


def test_a_run_killed_twice_between_snapshots_ends_as_one_that_was_not(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    """Snapshots at 10 and, with the validation, at 20: the second start must not write those before it again."""
    plan = planned(bundle, rows, dataclasses.replace(FIRST_ORDER, steps=28, validate_every=20))
    whole = run(plan, clock)
    shutil.move(whole.run, whole.run.with_name("whole"))
    for step in (23, 24):
        with pytest.raises(KeyboardInterrupt):
            tune(plan, MachineSettings(device="cpu"), Interrupting(step), clock)

    again = run(plan, clock)

    for name in ("journal.bin", "last.safetensors", "best.safetensors", "result.json"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()


def test_a_run_of_one_order_is_not_gone_on_with_in_the_other(
    bundle: Bundle, rows: Path, tmp_path: Path, clock: Callable[[], float]
) -> None:
    run(dataclasses.replace(planned(bundle, rows), directory=RunDirectory(tmp_path / "run")), clock)
    with pytest.raises(Conflict, match="settings"):
        run(dataclasses.replace(planned(bundle, rows, FIRST_ORDER), directory=RunDirectory(tmp_path / "run")), clock)


def test_a_zeroth_order_run_says_once_where_first_order_would_fit(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    said = []
    for seconds in (6.0, None):
        listener = Listener()
        machine = MachineSettings(device="cpu", memory_budget_bytes=8 << 30, time_budget_seconds=seconds)
        tune(planned(bundle, rows), machine, listener, clock)
        said.append([note for note in listener.notes if "--gradient first-order" in note])
    assert [len(notes) for notes in said] == [1, 0]
    assert "of 8.0 GiB are planned" in said[0][0]


def test_first_order_is_not_offered_where_it_does_not_fit_or_is_asked_for(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    with pytest.raises(ResourceError) as caught:
        run(planned(bundle, rows, FIRST_ORDER), clock, memory_budget_bytes=1 << 20)
    assert "--memory-budget" in caught.value.next_step
    for settings, budget in ((SETTINGS, None), (FIRST_ORDER, 8 << 30)):
        listener = Listener()
        machine = MachineSettings(device="cpu", memory_budget_bytes=budget)
        tune(planned(bundle, rows, settings), machine, listener, clock)
        assert not any("--gradient" in note for note in listener.notes)


def test_sixteen_bit_runs_too(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows, FIRST_ORDER), clock, compute_dtype=torch.bfloat16)
    assert report.result["validation"]["best"]["loss"] < report.result["validation"]["bundle"]["loss"]
    assert json.loads((report.run / "machine.json").read_text())["compute_dtype"] == "bfloat16"


def test_of_upper_blocks_it_lowers_the_loss_and_leaves_the_values_of_lower_blocks(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, UPPER)
    upper = tuned_blocks(bundle.config, "upper:1")
    report = run(plan, clock)

    validation = report.result["validation"]
    assert validation["best"]["loss"] < validation["bundle"]["loss"]
    assert (report.result["blocks"], report.result["tuned_values"]) == ("upper:1", upper.value_count)
    assert read_journal(report.run / "journal.bin")[0].blocks == "upper:1"
    assert load_theta(report.run).shape == (upper.value_count,)

    model = load_model(bundle, device="cpu")
    answer_as_tuned(plan.directory, model)
    theta, first = model.runtime.values.of(slice(None), 0), upper.first_value
    assert first == bundle.config.sensitive_count - upper.value_count > 0
    assert torch.equal(theta[:first], model.initial_theta()[:first])
    assert not torch.equal(theta[first:], model.initial_theta()[first:])


def plan_to_kill(bundle: Bundle, rows: Path) -> PlannedRun:
    return planned(bundle, rows, UPPER)


def test_of_upper_blocks_a_killed_run_goes_on_to_the_same_bytes(
    bundle: Bundle, tiny_bundle: TinyBundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, UPPER)
    whole = Path(shutil.move(run(plan, clock).run, rows.parent / "whole"))

    kill_at_step(5, plan, __file__, tiny_bundle, rows)

    resumed = run(plan, clock).run
    for name in SAME_BYTES:
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
