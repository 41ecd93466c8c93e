"""A fine-tune of the upper blocks alone: the same bits whatever was kept, killed or resumed; its values are a tail."""

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
from tiny_run import SETTINGS, run

from device_client.cli import main
from device_client.model.loader import load_model
from device_client.model.open import Machine, fit_workload
from device_client.planning.memory_fit import side_by_side
from device_client.planning.tuned_blocks import tuned_blocks
from device_client.tasks.task_data import DataOptions
from device_client.tuning.journal import JournalHeader, read_journal
from device_client.tuning.planned_run import PlannedRun, plan_run
from device_client.tuning.run_directory import load_theta
from device_client.tuning.tuned_values import answer_as_tuned
from shared.bundle.read import Bundle
from shared.errors import Conflict, IntegrityError

UPPER = dataclasses.replace(SETTINGS, blocks="upper:1")
SAME_BYTES = ("journal.bin", "last.safetensors", "best.safetensors", "result.json", "metrics.jsonl")


def planned_upper(bundle: Bundle, rows: Path, output: Path | None = None) -> PlannedRun:
    options = DataOptions(data=rows, validation_share=0.25)
    return plan_run(bundle, UPPER, options, runs=rows.parent / "runs", output=output)


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME_BYTES}


def test_a_run_of_upper_blocks_holds_their_values_alone_and_says_so(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    upper = tuned_blocks(bundle.config, "upper:1")
    report = run(planned_upper(bundle, rows), clock)

    header, records = read_journal(report.run / "journal.bin")
    assert (header.blocks, header.sensitive_count, len(records)) == ("upper:1", upper.value_count, 12)
    assert load_theta(report.run).shape == (upper.value_count,)
    assert report.result["blocks"] == json.loads((report.run / "config.json").read_text())["settings"]["blocks"]


def test_the_values_of_a_run_are_put_into_the_bundles_own(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned_upper(bundle, rows)
    report = run(plan, clock)
    model = load_model(bundle, device="cpu")
    first = tuned_blocks(bundle.config, "upper:1").first_value

    answer_as_tuned(plan.directory, model)

    theta = model.runtime.values.of(slice(None), 0)
    assert torch.equal(theta[:first], model.initial_theta()[:first])
    assert torch.equal(theta[first:], load_theta(report.run))


def test_auto_is_the_run_of_the_third_that_it_names(bundle: Bundle, rows: Path) -> None:
    options = DataOptions(data=rows, validation_share=0.25)
    auto = plan_run(bundle, dataclasses.replace(SETTINGS, blocks="auto"), options, runs=rows.parent)
    named = plan_run(bundle, UPPER, options, runs=rows.parent)
    whole = plan_run(bundle, SETTINGS, options, runs=rows.parent)

    assert bundle.config.architecture["num_hidden_layers"] == 2
    assert auto.directory.path == named.directory.path != whole.directory.path


def test_kept_in_memory_in_a_file_or_not_at_all_a_run_is_the_same_bit_for_bit(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plans = [planned_upper(bundle, rows, rows.parent / name) for name in ("memory", "file", "nowhere")]
    examples = [*plans[0].data.training, *plans[0].data.validation]
    most = side_by_side(examples, UPPER.batch_size, queries=1, blocks="upper:1")
    fit = fit_workload(bundle.config, Machine(device="cpu"), most)
    tight = fit.plan.total_bytes - fit.kept_states_bytes  # nothing is left for states, and a twentieth stays free

    reports = [
        run(plans[0], clock),
        run(plans[1], clock, memory_budget_bytes=tight, micro_batch_rows=fit.micro_batch_rows),
        run(plans[2], clock, memory_budget_bytes=tight, micro_batch_rows=fit.micro_batch_rows, states_file_bytes=0),
    ]

    kept = [(report.resources["kept_states_bytes"], report.resources["states_file_bytes"]) for report in reports]
    assert kept == [(fit.kept_states_bytes, 0), (0, fit.kept_states_bytes), (0, 0)]
    assert fit.kept_states_bytes == most.kept_tokens * 32 * 4 > 0
    assert content_of(reports[0].run) == content_of(reports[1].run) == content_of(reports[2].run)
    assert {path.name for path in reports[1].run.iterdir()} == {path.name for path in reports[0].run.iterdir()}


def test_a_budget_that_holds_some_rows_keeps_those(bundle: Bundle, rows: Path) -> None:
    examples = planned_upper(bundle, rows).data.training
    most = side_by_side(examples, UPPER.batch_size, queries=1, blocks="upper:1")
    without = dataclasses.replace(most, kept_tokens=0)
    least = fit_workload(bundle.config, Machine(device="cpu"), without).plan.total_bytes
    budget = -(-(least + 5 * 32 * 4) * 20 // 19)

    fit = fit_workload(bundle.config, Machine(device="cpu", memory_budget_bytes=budget), most)

    assert fit.plan.workload.kept_tokens == 5
    assert fit.kept_states_bytes == 5 * 32 * 4
    assert fit.plan.total_bytes == least + 5 * 32 * 4
    assert fit.decoded_cache_bytes < 32 * 4


def plan_to_kill(bundle: Bundle, rows: Path) -> PlannedRun:
    return planned_upper(bundle, rows)


def test_a_killed_run_goes_on_to_the_same_bytes_and_leaves_no_states_behind(
    bundle: Bundle, tiny_bundle: TinyBundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned_upper(bundle, rows)
    whole = shutil.move(run(plan, clock).run, rows.parent / "whole")

    kill_at_step(5, plan, __file__, tiny_bundle, rows)

    assert "states.bin" not in {path.name for path in plan.directory.path.iterdir()}
    assert content_of(run(plan, clock).run) == content_of(Path(whole))


def test_a_run_of_other_blocks_is_refused_in_the_same_folder(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    output = rows.parent / "mine"
    run(planned_upper(bundle, rows, output), clock)
    options = DataOptions(data=rows, validation_share=0.25)
    with pytest.raises(Conflict, match=r"settings.* differ"):
        run(plan_run(bundle, SETTINGS, options, runs=rows.parent, output=output), clock)


def test_a_record_that_names_no_blocks_of_the_bundle_is_refused(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned_upper(bundle, rows)
    run(plan, clock)
    record = plan.directory
    record.write_json("config.json", json.loads(json.dumps(record.read_config()).replace("upper:1", "upper:9")))
    with pytest.raises(IntegrityError, match="upper:9"):
        answer_as_tuned(record, load_model(bundle, device="cpu"))


def test_a_journal_from_before_blocks_were_on_record_is_of_all_blocks() -> None:
    fields = {
        "seed": 0, "stream": "s", "distribution": "gaussian", "sensitive_count": 3, "queries": 1, "epsilon": 1e-3,
        "bundle_digest": "sha256:0", "settings_digest": "sha256:1",
    }  # fmt: skip
    assert JournalHeader(**fields).blocks == "all"  # type: ignore[arg-type]


def test_tune_eval_generate_and_runs_know_the_blocks(
    rows: Path, tmp_path: Path, tiny_bundle: TinyBundle, kernels: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    shutil.copytree(kernels, tmp_path / "backends")
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)

    def call(*words: str) -> dict[str, object]:
        code = main([*words, "--json"])
        streams = capsys.readouterr()
        assert code == 0, streams.err
        found: dict[str, object] = json.loads(streams.out)
        return found

    tuned = call("tune", "--data", str(rows), "--steps", "6", "--batch", "4", "--device", "cpu", "--blocks", "auto",
                 "--lr", "1e-2")  # fmt: skip
    scored = call("eval", "--data", str(rows), "--run", str(tuned["run"]), "--device", "cpu")
    own = call("eval", "--data", str(rows), "--device", "cpu")
    continued = call("generate", "tiny", "good", "--run", str(tuned["run"]), "--max-new-tokens", "2")
    (listed,) = call("runs")["runs"]  # type: ignore[misc]

    assert own["loss"] != scored["loss"]
    assert continued["new_tokens"] == 2
    assert listed["blocks"] == "upper:1"


def test_what_names_no_blocks_is_refused_with_the_code_of_a_wrong_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--data", "rows.jsonl", "--blocks", "lower:2"]) == 2
    assert "upper:N" in capsys.readouterr().err
