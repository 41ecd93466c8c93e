"""A whole fine-tune of the tiny bundle: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, planned, run

from device_client.model.loader import load_model
from device_client.tasks.task_data import DataOptions
from device_client.tuning.goals import LossGoal
from device_client.tuning.journal import read_journal
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.planned_run import plan_run
from device_client.tuning.run_directory import RunDirectory, load_theta
from shared.bundle.read import Bundle
from shared.errors import Conflict, InvalidRequest, ResourceError, UnsupportedModel


def test_a_run_leaves_everything_in_its_folder(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows), clock)
    assert {path.name for path in report.run.iterdir()} == {
        "config.json", "machine.json", "journal.bin", "metrics.jsonl", "last.safetensors", "best.safetensors",
        "result.json", "resources.json", "loss.svg", "seconds.jsonl", "answers.json", "report.html",
    }  # fmt: skip
    result = report.result
    assert (result["steps_done"], result["forward_passes"], result["objective"]) == (12, 2 * 12 + 8, "candidates")
    assert result["validation"]["bundle"]["rows"] == 3
    assert result["test"]["last"]["rows"] == 12
    assert load_theta(report.run).shape == (bundle.config.sensitive_count,)
    assert report.resources["seconds_per_step"] is not None
    assert report.resources["peak_memory_bytes"] > 0
    assert len(read_journal(report.run / "journal.bin")[1]) == 12


def test_rows_of_the_user_are_in_the_two_files_alone_that_say_so(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    rows.write_text(rows.read_text().replace("good", "zebra"))
    report = run(planned(bundle, rows), clock)
    holding = {path.name for path in report.run.iterdir() if b"zebra" in path.read_bytes()}
    assert holding == {"answers.json", "report.html"}
    assert "rows of a person's data" in json.loads((report.run / "answers.json").read_text())["holds"]
    assert "holds rows of the data" in (report.run / "report.html").read_text()
    assert {path.stat().st_mode & 0o777 for path in report.run.iterdir()} == {0o600}


def test_a_run_that_keeps_no_rows_has_none_in_its_folder(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    rows.write_text(rows.read_text().replace("good", "zebra"))
    report = run(planned(bundle, rows), clock, kept_rows=0)
    assert not [path.name for path in report.run.iterdir() if b"zebra" in path.read_bytes()]
    answers = json.loads((report.run / "answers.json").read_text())
    assert (answers["shown"], answers["holds"]) == ([], "counts of rows by label; no row of a person's data")
    assert sum(map(sum, answers["confusion"]["after"])) == 12


def test_a_bundle_without_sensitive_values_is_refused_by_name(bundle: Bundle, rows: Path) -> None:
    tensors = tuple(entry.model_copy(update={"sensitive_count": 0}) for entry in bundle.config.tensors)
    bare = dataclasses.replace(bundle, config=bundle.config.model_copy(update={"tensors": tensors}))
    with pytest.raises(UnsupportedModel, match="no sensitive values") as caught:
        planned(bare, rows)
    assert "--sparsity" in caught.value.next_step


def test_the_same_call_again_does_nothing(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    first = run(planned(bundle, rows), clock)
    before = {path.name: path.read_bytes() for path in first.run.iterdir()}
    second = run(planned(bundle, rows), clock)
    assert second.was_finished
    assert second.result == first.result == RunDirectory(first.run).read_json("result.json")
    assert {path.name: path.read_bytes() for path in second.run.iterdir()} == before


@pytest.mark.parametrize("name", ["journal.bin", "best.safetensors"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "changed"])
def test_a_finished_run_whose_values_or_journal_are_damaged_is_made_whole(
    bundle: Bundle, rows: Path, clock: Callable[[], float], name: str, is_cut: bool
) -> None:
    """The journal loses whole records, or a bit of one in the middle changes."""
    folder = run(planned(bundle, rows), clock).run
    whole = (folder / name).read_bytes()
    record = 30  # bytes of a step
    changed = whole[: -2 * record - 5] + bytes([whole[-2 * record - 5] ^ 4]) + whole[-2 * record - 4 :]
    (folder / name).write_bytes(whole[: -2 * record] if is_cut else changed)
    assert not run(planned(bundle, rows), clock).was_finished
    assert (folder / name).read_bytes() == whole
    assert run(planned(bundle, rows), clock).was_finished


def test_equal_runs_in_two_folders_are_equal_bit_for_bit(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)
    first = run(plan, clock).run
    shutil.move(first, first.with_name("other"))
    run(plan, clock)
    for name in ("journal.bin", "machine.json", "last.safetensors", "best.safetensors", "result.json", "loss.svg"):
        assert (first / name).read_bytes() == (first.with_name("other") / name).read_bytes()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 13}, {"epsilon": 2e-3}, {"lr": 1e-6}, {"objective": "vocabulary"}]
)
def test_another_setting_is_another_run(bundle: Bundle, rows: Path, change: dict[str, object]) -> None:
    other = planned(bundle, rows, dataclasses.replace(SETTINGS, **change))  # type: ignore[arg-type]
    assert other.directory.path != planned(bundle, rows).directory.path


def test_other_rows_are_another_run(bundle: Bundle, rows: Path) -> None:
    before = planned(bundle, rows).directory.path
    rows.write_text(rows.read_text().replace("good", "nice"))
    assert planned(bundle, rows).directory.path != before


def test_a_folder_that_holds_another_run_is_left_alone(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    options = DataOptions(data=rows, validation_share=0.25)
    output = rows.parent / "mine"
    run(plan_run(bundle, SETTINGS, options, runs=rows.parent, output=output), clock)
    other = dataclasses.replace(SETTINGS, seed=9)
    with pytest.raises(Conflict, match=r"settings.* differ"):
        run(plan_run(bundle, other, options, runs=rows.parent, output=output), clock)


def test_a_run_stopped_by_its_time_budget_goes_on(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    stopped = run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    assert stopped.result["stopped_by"] == "time budget"
    assert stopped.result["validation"]["last"]["rows"] == 3
    again = run(planned(bundle, rows), clock)
    assert (again.result["steps_done"], again.was_finished) == (12, False)
    shutil.move(again.run, again.run.with_name("paused"))
    assert run(planned(bundle, rows), clock).result == again.result


def test_an_epsilon_below_the_compute_formats_spacing_is_refused(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=1e-6))
    with pytest.raises(InvalidRequest, match="bfloat16 loses"):
        run(plan, clock, compute_dtype=torch.bfloat16)
    assert not plan.directory.path.exists()


def test_a_run_refused_before_its_first_step_leaves_only_what_was_there(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=1e-6))
    plan.directory.create()
    (plan.directory.path / "notes.txt").write_text("mine")
    (plan.directory.path / "best.safetensors").write_text("of another run")
    with pytest.raises(InvalidRequest, match="bfloat16 loses"):
        run(plan, clock, compute_dtype=torch.bfloat16)
    assert sorted(path.name for path in plan.directory.path.iterdir()) == ["best.safetensors", "notes.txt"]


@pytest.mark.parametrize("measured", [0, 5])
def test_memory_that_runs_out_leaves_a_run_only_where_it_has_steps(
    bundle: Bundle, rows: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch, measured: int
) -> None:
    calls = iter(range(measured))
    losses = ModelProblem.losses

    def tight_losses(*arguments: object) -> list[float]:
        if next(calls, None) is None:
            raise ResourceError("no memory for one sequence")
        return losses(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelProblem, "losses", tight_losses)
    plan = planned(bundle, rows)
    with pytest.raises(ResourceError):
        run(plan, clock)
    assert plan.directory.path.exists() is (measured > 0)
    monkeypatch.undo()
    assert run(plan, clock).result["steps_done"] == 12


def test_a_refusal_takes_nothing_from_a_run_that_its_time_budget_stopped_before_its_first_step(
    bundle: Bundle, rows: Path, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = run(planned(bundle, rows), clock, time_budget_seconds=0.5)
    assert stopped.result["steps_done"] == 0
    before = {path.name: path.read_bytes() for path in stopped.run.iterdir()}

    def refuse(*_arguments: object) -> None:
        raise ResourceError("no memory for the weights")

    monkeypatch.setattr("device_client.tuning.engines.check_fidelity", refuse)
    with pytest.raises(ResourceError):
        run(planned(bundle, rows), clock)
    assert {path.name: path.read_bytes() for path in stopped.run.iterdir()} == before


def test_micro_batched_equals_whole_batch_on_the_real_model(bundle: Bundle, rows: Path) -> None:
    from device_client.tuning.batches import BatchIndices

    data, model = planned(bundle, rows).data, load_model(bundle, device="cpu")
    losses = []
    for micro_batch_rows in (1, 3, 100):
        indices = BatchIndices(len(data.training), 8, seed=0)
        problem = ModelProblem(
            model, data.training, data.validation, LossGoal(model, "candidates"), indices, micro_batch_rows
        )
        losses.append(problem.losses([model.initial_theta()], problem.batch(0)))
    # float32 logits of order 1: padding changes their last bits only.
    assert all(torch.allclose(found, losses[0], rtol=0, atol=1e-5) for found in losses)


def test_signs_side_by_side_and_apart_make_the_same_run_bit_for_bit(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    """Each budget is one byte too small for the points of the run before: all four, one query's two, and one."""
    settings = dataclasses.replace(SETTINGS, queries=2)
    reports, written, budget = [], [], 8 << 30
    for _ in range(3):
        report = run(planned(bundle, rows, settings), clock, memory_budget_bytes=budget)
        reports.append(report)
        names = ("journal.bin", "last.safetensors", "best.safetensors", "result.json")
        written.append([(report.run / name).read_bytes() for name in names])
        shutil.move(report.run, report.run.with_name(f"run of {budget} bytes"))
        budget = report.resources["planned_memory_bytes"] - 1

    assert [report.resources["points_at_once"] for report in reports] == [4, 2, 1]
    assert len({report.resources["micro_batch_rows"] for report in reports}) == 1
    assert written[0] == written[1] == written[2]


def test_a_run_reports_its_noise_floor(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    """Losses of float32 models of size 1 have a spacing of 1e-7, and so has what rounding does to them."""
    resources = run(planned(bundle, rows), clock).resources
    assert 0 < resources["noise_floor"] < 1e-4


def test_a_problem_shrinks_to_one_sequence_and_no_further(bundle: Bundle, rows: Path) -> None:
    from device_client.tuning.batches import BatchIndices

    data = planned(bundle, rows).data
    model = load_model(bundle, device="cpu")
    problem = ModelProblem(
        model, data.training, data.validation, LossGoal(model, "vocabulary"), BatchIndices(4, 2, 0), 5
    )
    assert [(problem.shrink(), problem.micro_batch_rows) for _ in range(4)] == [
        (True, 3), (True, 2), (True, 1), (False, 1)
    ]  # fmt: skip


def test_a_measured_run_counts_every_pass_and_says_what_it_found(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    """12 steps of two directions, the first 8 of which measure curvature as well."""
    settings = dataclasses.replace(SETTINGS, queries=2)
    result = run(planned(bundle, rows, settings), clock).result
    assert result["forward_passes"] == 12 * 4 + 8
    assert set(result["measured"]) == {"signal_share", "curvature", "useful_batch", "expected_fall_per_step"}


def test_one_sided_directions_save_half_of_the_passes(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    settings = dataclasses.replace(SETTINGS, queries=3, directions="one-sided", step_length=0.1)
    result = run(planned(bundle, rows, settings), clock).result
    assert result["forward_passes"] == 12 * 3
    assert "measured" not in result
