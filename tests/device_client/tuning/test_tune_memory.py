"""A run on a tight machine: smaller batches, the same machine when it goes on, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, Silent, planned, run
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.native.amx import has_matrix_unit
from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.tuning.journal import read_journal
from device_client.tuning.planned_run import PlannedRun
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.tune_run import MachineSettings, TuneReport, tune
from shared.bundle.read import Bundle
from shared.errors import Conflict, IntegrityError, InvalidRequest, ResourceError


def test_a_budget_that_is_too_small_is_refused_before_loading(bundle: Bundle, rows: Path, clock: object) -> None:
    with pytest.raises(ResourceError, match="memory budget") as caught:
        run(planned(bundle, rows), clock, memory_budget_bytes=1 << 20)  # type: ignore[arg-type]
    assert caught.value.exit_code == 8


class TightModel:
    """A model that cannot run more than three sequences side by side while ``is_tight`` says so."""

    def __init__(self, model: SparseModel, is_tight: Callable[[], bool]) -> None:
        self._model, self._is_tight = model, is_tight
        self.failures = 0
        self.widest = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def logits(self, batch: TokenBatch) -> Tensor:
        if len(batch.input_ids) > 3 and self._is_tight():
            self.failures += 1
            raise torch.OutOfMemoryError
        self.widest = max(self.widest, len(batch.input_ids))
        return self._model.logits(batch)


def run_tight(
    plan: PlannedRun, clock: Callable[[], float], is_tight: Callable[[], bool], **machine: object
) -> tuple[TuneReport, TightModel]:
    model = TightModel(load_model(plan.bundle, device="cpu"), is_tight)
    asked = MachineSettings(device="cpu", **machine)  # type: ignore[arg-type]
    report = tune(plan, asked, Silent(), clock, load=lambda *_arguments, **_options: model)  # type: ignore[arg-type,return-value]
    return report, model


def test_out_of_memory_in_the_final_evaluation_halves_the_micro_batch(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)

    def is_validated() -> bool:
        return any(line["steps_done"] == SETTINGS.steps for line in plan.directory.metrics())

    report, model = run_tight(plan, clock, is_validated)
    assert model.failures >= 1
    assert report.resources["micro_batch_rows"] <= 3
    assert report.result["test"]["best"]["rows"] == 12


def test_a_run_goes_on_with_the_micro_batch_that_it_had_come_to(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)

    def is_at_step_two() -> bool:
        return len(read_journal(plan.directory.journal)[1]) == 2

    whole, _ = run_tight(plan, clock, is_at_step_two)
    shutil.move(whole.run, whole.run.with_name("whole"))
    stopped, first = run_tight(plan, clock, is_at_step_two, time_budget_seconds=6.0)
    assert (stopped.result["stopped_by"], first.failures) == (
        "time budget",
        3,
    )  # signs apart, then 8 → 4 → 2 rows
    again, second = run_tight(plan, clock, lambda: False)
    assert second.widest == 2
    for name in ("journal.bin", "machine.json", "last.safetensors", "best.safetensors", "result.json"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()
    assert RunDirectory(again.run).read_json("machine.json") == {
        "device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 8, "micro_batch_rows": 2,
        "products": "library",
    }  # fmt: skip


def test_memory_that_the_noise_floor_lacked_stays_on_record(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)

    def has_no_step() -> bool:
        return len(read_journal(plan.directory.journal)[1]) == 0

    whole, _ = run_tight(plan, clock, has_no_step)
    shutil.move(whole.run, whole.run.with_name("whole"))
    stopped, _ = run_tight(plan, clock, has_no_step, time_budget_seconds=6.0)
    assert stopped.result["stopped_by"] == "time budget"
    assert json.loads((stopped.run / "machine.json").read_text())["micro_batch_rows"] == 2

    again, second = run_tight(plan, clock, lambda: False)

    assert second.widest == 2
    for name in ("journal.bin", "last.safetensors", "result.json"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()


def test_memory_that_a_report_lacked_does_not_change_the_steps_after_it(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)

    def is_reporting() -> bool:
        return len(read_journal(plan.directory.journal)[1]) > 0

    stopped, _ = run_tight(plan, clock, is_reporting, time_budget_seconds=3.0)
    assert stopped.result["stopped_by"] == "time budget"
    assert stopped.resources["micro_batch_rows"] == 2
    assert json.loads((stopped.run / "machine.json").read_text())["micro_batch_rows"] == 8


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"compute_dtype": torch.bfloat16}, "go on with --device cpu --dtype float32"),
        ({"micro_batch_rows": 5}, "go on with --micro-batch 8"),
    ],
)
def test_a_run_does_not_go_on_in_another_way(
    bundle: Bundle, rows: Path, clock: Callable[[], float], asked: dict[str, object], told: str
) -> None:
    run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    with pytest.raises(Conflict, match="last bits") as caught:
        run(planned(bundle, rows), clock, **asked)
    assert told in str(caught.value)
    assert run(planned(bundle, rows), clock, micro_batch_rows=8).result["steps_done"] == 12


def test_a_run_begun_on_another_device_is_refused(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    stopped = run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    folder = RunDirectory(stopped.run)
    folder.write_json("machine.json", (folder.read_json("machine.json") or {}) | {"device_type": "cuda"})
    with pytest.raises(Conflict, match="with --device cpu the last bits"):
        run(planned(bundle, rows), clock)


def test_a_run_goes_on_in_the_format_it_was_begun_in(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=0.1))
    run(plan, clock, time_budget_seconds=6.0, compute_dtype=torch.bfloat16)
    again = run(plan, clock)
    assert (again.resources["compute_dtype"], again.result["steps_done"]) == ("bfloat16", 12)


@pytest.fixture
def wide_bundle(case_of: Callable) -> Bundle:
    """A model whose weights fit panels."""
    found: Bundle = case_of("llama", hidden_size=128, intermediate_size=256, sensitive=300).bundle
    return found


def test_a_run_begun_with_the_librarys_products_goes_on_with_them(
    wide_bundle: Bundle, rows: Path, clock: Callable[[], float], kernels: Path
) -> None:
    """The backend may change: without the matrix unit all backends give the same bits."""
    plan = planned(wide_bundle, rows, dataclasses.replace(SETTINGS, epsilon=0.1))
    whole = run(plan, clock, compute_dtype=torch.bfloat16)
    shutil.move(whole.run, whole.run.with_name("whole"))
    run(plan, clock, time_budget_seconds=6.0, compute_dtype=torch.bfloat16)

    again = run(plan, clock, backend=BackendOptions("native", kernels))

    assert again.resources["backend"] == "native"
    for name in ("journal.bin", "machine.json", "last.safetensors"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()


@pytest.mark.skipif(not has_matrix_unit(), reason="needs a CPU with a matrix unit (AMX)")
def test_a_run_begun_on_the_matrix_unit_goes_on_there_only(
    wide_bundle: Bundle, rows: Path, clock: Callable[[], float], kernels: Path
) -> None:
    plan = planned(wide_bundle, rows, dataclasses.replace(SETTINGS, epsilon=0.1))
    native = BackendOptions("native", kernels)
    stopped = run(plan, clock, time_budget_seconds=6.0, compute_dtype=torch.bfloat16, backend=native)
    assert json.loads((stopped.run / "machine.json").read_text())["products"] == "matrix unit"

    with pytest.raises(Conflict, match="begun with products by the matrix unit; here the library") as caught:
        run(plan, clock, backend=BackendOptions("reference"))

    assert "go on with --backend native" in caught.value.next_step
    assert run(plan, clock, backend=native).result["steps_done"] == 12


def test_a_run_begun_with_products_in_bfloat16_continues_with_them_to_the_same_bits(
    bundle: Bundle, rows: Path, clock: Callable[[], float], kernels: Path
) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=0.1))
    native, rounded = BackendOptions("native", kernels), BackendOptions("auto", kernels, products="bfloat16")
    whole = run(plan, clock, backend=rounded)
    shutil.move(whole.run, whole.run.with_name("whole"))
    stopped = run(plan, clock, time_budget_seconds=6.0, backend=rounded)
    assert json.loads((stopped.run / "machine.json").read_text())["products"] == "bfloat16"

    with pytest.raises(Conflict, match="begun with --products bfloat16; with --products library"):
        run(plan, clock, backend=dataclasses.replace(native, products="library"))
    again = run(plan, clock, backend=native)

    assert again.result["steps_done"] == 12
    for name in ("journal.bin", "last.safetensors"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()


def test_products_in_bfloat16_are_refused_to_a_perturbation_that_their_rounding_hides(
    bundle: Bundle, rows: Path, clock: Callable[[], float], kernels: Path
) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=1e-3))
    with pytest.raises(InvalidRequest, match="rounding changes the difference of two losses") as caught:
        run(plan, clock, backend=BackendOptions("auto", kernels, products="bfloat16"))
    assert caught.value.next_step == "--epsilon 0.004, or leave --products out"
    assert not plan.directory.path.exists()


def test_a_float32_run_goes_on_with_any_backend(
    bundle: Bundle, rows: Path, clock: Callable[[], float], kernels: Path
) -> None:
    run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    again = run(planned(bundle, rows), clock, backend=BackendOptions("native", kernels))
    assert (again.resources["backend"], again.result["steps_done"]) == ("native", 12)


def test_a_run_begun_before_products_were_on_record_goes_on(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    folder = RunDirectory(run(planned(bundle, rows), clock, time_budget_seconds=6.0).run)
    machine = folder.read_json("machine.json") or {}
    folder.write_json("machine.json", {key: found for key, found in machine.items() if key != "products"})
    assert run(planned(bundle, rows), clock).result["steps_done"] == 12


def test_a_budget_that_the_runs_micro_batch_no_longer_fits_is_refused(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    with pytest.raises(ResourceError, match="goes on with 8 sequences side by side") as caught:
        run(planned(bundle, rows), clock, memory_budget_bytes=1 << 20)
    assert "--memory-budget" in caught.value.next_step


@pytest.mark.parametrize(
    "content",
    ["{}", '{"device_type": "cpu", "compute_dtype": "eval", "begun_with_rows": 8, "micro_batch_rows": 8}',
     '{"device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 8, "micro_batch_rows": 0}',
     '{"device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 8, "micro_batch_rows": 8, "products": ""}'],
)  # fmt: skip
def test_a_damaged_machine_record_is_named(
    bundle: Bundle, rows: Path, clock: Callable[[], float], content: str
) -> None:
    stopped = run(planned(bundle, rows), clock, time_budget_seconds=6.0)
    (stopped.run / "machine.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"machine\.json"):
        run(planned(bundle, rows), clock)


def test_a_smaller_budget_is_a_smaller_micro_batch(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows), clock, memory_budget_bytes=8 << 30)
    assert report.resources["micro_batch_rows"] == 8  # 4 rows of two candidates each
    assert run(planned(bundle, rows, dataclasses.replace(SETTINGS, seed=2)), clock).resources["micro_batch_rows"] == 8
