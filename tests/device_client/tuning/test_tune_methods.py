"""A fine-tune of low-rank factors, and one of a prefix: what it records, repeats after a kill, and answers later."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killed_run import kill_at_step
from safetensors import safe_open
from tiny_bundle import TinyBundle
from tiny_run import SETTINGS, run

from device_client.cli import main
from device_client.model.loader import load_model
from device_client.planning.methods import MethodName
from device_client.tasks.task_data import DataOptions
from device_client.tuning.journal import read_journal
from device_client.tuning.planned_run import PlannedRun, plan_run
from device_client.tuning.run_directory import RunDirectory, load_theta
from device_client.tuning.settings import TuneSettings
from device_client.tuning.tuned_values import answer_as_tuned
from shared.bundle.read import Bundle
from shared.errors import Conflict, IntegrityError, InvalidRequest

EPSILONS: dict[MethodName, float] = {"lora": 1e-3, "prefix": 1e-2}  # Table 4 of the paper, Llama2-7B
# A block of the tiny bundle: q, o (32, 32); k, v (16, 32); gate, up (44, 32); down (32, 44). Keys are 16 wide.
COUNTS: dict[MethodName, int] = {"lora": 2 * 8 * (2 * 64 + 2 * 48 + 3 * 76), "prefix": 2 * 5 * 2 * 16}
NUMBERS: dict[MethodName, dict[str, int]] = {"lora": {"rank": 8, "alpha": 16}, "prefix": {"prefix_length": 5}}
SAME_BYTES = ("journal.bin", "last.safetensors", "best.safetensors", "result.json", "metrics.jsonl")
BOTH = pytest.mark.parametrize("method", ["lora", "prefix"])


def settings_of(method: MethodName, **changes: Any) -> TuneSettings:
    return dataclasses.replace(SETTINGS, method=method, epsilon=EPSILONS[method], **changes)


def planned(bundle: Bundle, rows: Path, settings: TuneSettings, output: Path | None = None) -> PlannedRun:
    options = DataOptions(data=rows, test=rows, validation_share=0.25)
    return plan_run(bundle, settings, options, runs=rows.parent / "runs", output=output)


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SAME_BYTES}


@BOTH
def test_a_run_records_what_it_tunes(
    bundle: Bundle, rows: Path, clock: Callable[[], float], method: MethodName
) -> None:
    report = run(planned(bundle, rows, settings_of(method)), clock)
    config = json.loads((report.run / "config.json").read_text())
    header, records = read_journal(report.run / "journal.bin")
    with safe_open(str(report.run / "best.safetensors"), framework="pt") as file:
        labels = dict(file.metadata())

    assert labels.pop("steps_done") == str(report.result["best_step"])
    assert (labels.pop("checked_by"), labels.pop("checksum").isdecimal()) == ("crc32", True)
    assert labels == {"method": method} | {name: str(number) for name, number in NUMBERS[method].items()}
    assert config["settings"].items() >= ({"method": method} | NUMBERS[method]).items()
    assert report.result.items() >= ({"method": method, "tuned_values": COUNTS[method]} | NUMBERS[method]).items()
    assert (header.sensitive_count, len(records)) == (COUNTS[method], 12)
    assert load_theta(report.run).shape == (COUNTS[method],)


@BOTH
@pytest.mark.parametrize("chosen", [{}, {"step_length": 0.3}], ids=["measured", "chosen"])
def test_steps_lower_the_loss(
    bundle: Bundle, rows: Path, clock: Callable[[], float], method: MethodName, chosen: dict[str, float]
) -> None:
    report = run(planned(bundle, rows, settings_of(method, steps=60, batch_size=9, **chosen)), clock)
    first = "bundle" if method == "lora" else "start"
    found = report.result["test"]
    assert found["best"]["loss"] < found[first]["loss"] - 0.01


def test_a_prefix_is_measured_against_the_bundle_without_one(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    sparse = run(planned(bundle, rows, SETTINGS), clock).result
    found = run(planned(bundle, rows, settings_of("prefix")), clock).result
    lora = run(planned(bundle, rows, settings_of("lora")), clock).result

    for figure in ("calibrated_zero_shot", "in_context"):
        assert found["test"][figure] == lora["test"][figure] == sparse["test"][figure]
    for part in ("validation", "test"):
        assert found[part]["bundle"] == lora[part]["bundle"] == sparse[part]["bundle"]
        assert found[part]["start"]["loss"] != found[part]["bundle"]["loss"]
        assert "start" not in lora[part]


def plan_to_kill(bundle: Bundle, rows: Path, method: MethodName) -> PlannedRun:
    return planned(bundle, rows, settings_of(method))


@BOTH
def test_a_killed_run_continues_to_the_same_bytes(
    bundle: Bundle, tiny_bundle: TinyBundle, rows: Path, clock: Callable[[], float], method: MethodName
) -> None:
    plan = planned(bundle, rows, settings_of(method))
    whole = shutil.move(run(plan, clock).run, rows.parent / "whole")

    kill_at_step(6, plan, __file__, tiny_bundle, rows, method)

    assert content_of(run(plan, clock).run) == content_of(Path(whole))


def test_factors_of_upper_blocks_alone_are_tuned(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows, settings_of("lora", blocks="upper:1")), clock)
    assert report.result["tuned_values"] == COUNTS["lora"] // 2
    answer_as_tuned(RunDirectory(report.run), load_model(bundle, device="cpu"))


def test_a_bundle_without_sensitive_values_can_be_tuned_by_other_methods(bundle: Bundle, rows: Path) -> None:
    tensors = tuple(entry.model_copy(update={"sensitive_count": 0}) for entry in bundle.config.tensors)
    bare = dataclasses.replace(bundle, config=bundle.config.model_copy(update={"tensors": tensors}))
    assert planned(bare, rows, settings_of("lora")).part.value_count == COUNTS["lora"]


def test_methods_are_runs_of_their_own_and_none_continues_another(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plans = [planned(bundle, rows, settings) for settings in (SETTINGS, settings_of("lora"), settings_of("prefix"))]
    assert len({plan.directory.path for plan in plans}) == 3
    output = rows.parent / "mine"
    run(planned(bundle, rows, settings_of("lora"), output), clock)
    with pytest.raises(Conflict, match=r"another run: settings.*of the settings: alpha, method, rank"):
        run(planned(bundle, rows, SETTINGS, output), clock)


def test_values_of_another_method_are_refused(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    lora, prefix = (run(planned(bundle, rows, settings_of(method)), clock).run for method in ("lora", "prefix"))
    shutil.copy(prefix / "best.safetensors", lora / "best.safetensors")
    with pytest.raises(Conflict, match="values of method prefix") as caught:
        answer_as_tuned(RunDirectory(lora), load_model(bundle, device="cpu"))
    assert "method lora" in caught.value.needed


@pytest.mark.parametrize(("before", "after"), [('"lora"', '"dora"'), ('"rank": 8', '"rank": 4')])
def test_a_record_of_a_method_that_this_release_has_not_is_refused(
    bundle: Bundle, rows: Path, clock: Callable[[], float], before: str, after: str
) -> None:
    report = run(planned(bundle, rows, settings_of("lora")), clock)
    record = RunDirectory(report.run)
    record.write_json("config.json", json.loads(json.dumps(record.read_config()).replace(before, after)))
    with pytest.raises(IntegrityError, match=r"config\.json says that method"):
        answer_as_tuned(record, load_model(bundle, device="cpu"))


def test_what_has_no_meaning_is_refused_by_name(bundle: Bundle, rows: Path) -> None:
    with pytest.raises(InvalidRequest, match="--gradient first-order with --method lora") as caught:
        settings_of("lora", gradient="first-order")
    assert "--method sparse" in caught.value.next_step
    with pytest.raises(InvalidRequest, match="--blocks upper:1 with --method prefix"):
        planned(bundle, rows, settings_of("prefix", blocks="upper:1"))


def test_rows_that_fill_the_context_leave_no_room_for_a_prefix(bundle: Bundle, rows: Path) -> None:
    rows.write_text(rows.read_text().replace("good", "x" * 200))
    context = bundle.config.tokenizer.context_length
    with pytest.raises(InvalidRequest, match=f"a row of {context} tokens behind the 5 positions") as caught:
        planned(bundle, rows, settings_of("prefix"))
    assert caught.value.next_step == f"--max-tokens {context - 5}"


@BOTH
def test_eval_generate_and_runs_know_the_method(
    rows: Path, tmp_path: Path, tiny_bundle: TinyBundle, kernels: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], method: MethodName,
) -> None:  # fmt: skip
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    shutil.copytree(kernels, tmp_path / "backends")
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)

    def call(*words: str) -> dict[str, Any]:
        code = main([*words, "--json"])
        streams = capsys.readouterr()
        assert code == 0, streams.err
        found: dict[str, Any] = json.loads(streams.out)
        return found

    tuned = call("tune", "--data", str(rows), "--test", str(rows), "--steps", "20", "--batch", "4", "--device", "cpu",
                 "--method", method, "--step", "0.5", "--micro-batch", "4")  # fmt: skip
    scored = call("eval", "--data", str(rows), "--run", tuned["run"], "--device", "cpu", "--micro-batch", "4")
    of_run = ("--run", tuned["run"])
    texts = [call("generate", "tiny", "good", "--max-new-tokens", "9", *words) for words in ((), of_run)]
    (listed,) = call("runs")["runs"]

    assert {name: scored[name] for name in ("loss", "accuracy", "rows")} == tuned["result"]["test"]["best"]
    assert scored["without_tuning"]["bundle"] == tuned["result"]["test"]["bundle"]
    assert texts[0]["text"] != texts[1]["text"]
    assert (listed["method"], listed["state"]) == (method, "finished")
    assert json.loads((Path(tuned["run"]) / "config.json").read_text())["settings"]["epsilon"] == EPSILONS[method]
