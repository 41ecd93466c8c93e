"""A whole fine-tune of the tiny bundle, by the library and by the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_bundle import TinyBundle
from torch import Tensor

from device_client.cli import main
from device_client.model.loader import load_model
from device_client.model.memory_plan import Workload, plan_memory
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.tasks.task_data import DataOptions
from device_client.tuning.evaluation import Evaluation
from device_client.tuning.journal import StepRecord, read_journal
from device_client.tuning.model_problem import ModelProblem
from device_client.tuning.run_directory import load_theta
from device_client.tuning.tune_run import MachineSettings, PlannedRun, TuneReport, TuneSettings, plan_run, tune
from shared.bundle.read import Bundle, read_bundle
from shared.errors import Conflict, IntegrityError, InvalidRequest, ResourceError, UnsupportedModel

SETTINGS = TuneSettings(steps=12, batch_size=4, validate_every=4)


class Silent:
    def stepped(self, record: StepRecord) -> None:
        pass

    def validated(self, steps_done: int, evaluation: Evaluation, *, is_best: bool) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    words = [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("poor", "no")]
    lines = [json.dumps({"text": f"{word} {i}", "label": label}) for i in range(3) for word, label in words]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def clock() -> Callable[[], float]:
    ticks = iter(range(10_000))
    return lambda: float(next(ticks))


def planned(bundle: Bundle, rows: Path, settings: TuneSettings = SETTINGS) -> PlannedRun:
    options = DataOptions(data=rows, test=rows, validation_share=0.25)
    return plan_run(bundle, settings, options, runs=rows.parent / "runs")


def run(plan: PlannedRun, clock: Callable[[], float], **machine: object) -> TuneReport:
    return tune(plan, MachineSettings(device="cpu", **machine), Silent(), clock)  # type: ignore[arg-type]


def test_a_run_leaves_everything_in_its_folder(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows), clock)
    assert {path.name for path in report.run.iterdir()} == {
        "config.json", "machine.json", "journal.bin", "metrics.jsonl", "last.safetensors", "best.safetensors",
        "result.json", "resources.json", "loss.svg",
    }  # fmt: skip
    result = report.result
    assert (result["steps_done"], result["forward_passes"], result["objective"]) == (12, 24, "candidates")
    assert result["validation"]["bundle"]["rows"] == 3
    assert result["test"]["last"]["rows"] == 12
    assert load_theta(report.run).shape == (bundle.config.sensitive_count,)
    assert report.resources["seconds_per_step"] is not None
    assert report.resources["peak_memory_bytes"] > 0
    assert len(read_journal(report.run / "journal.bin")[1]) == 12


def test_no_row_of_the_user_is_in_the_run_folder(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    rows.write_text(rows.read_text().replace("good", "zebra"))
    report = run(planned(bundle, rows), clock)
    for path in report.run.iterdir():
        assert b"zebra" not in path.read_bytes()


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
    assert second.result == json.loads(before["result.json"])
    assert {path.name: path.read_bytes() for path in second.run.iterdir()} == before


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
    assert (stopped.result["stopped_by"], first.failures) == ("time budget", 2)  # 8 → 4 → 2 sequences
    again, second = run_tight(plan, clock, lambda: False)
    assert second.widest == 2
    for name in ("journal.bin", "machine.json", "last.safetensors", "best.safetensors", "result.json"):
        assert (again.run / name).read_bytes() == (whole.run.with_name("whole") / name).read_bytes()
    machine = json.loads((again.run / "machine.json").read_text())
    assert machine == {
        "device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 8, "micro_batch_rows": 2
    }  # fmt: skip


def test_memory_that_a_report_lacked_does_not_change_the_steps_after_it(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows)

    def is_reporting() -> bool:
        return len(read_journal(plan.directory.journal)[1]) > 0

    stopped, _ = run_tight(plan, clock, is_reporting, time_budget_seconds=2.0)
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
    path = stopped.run / "machine.json"
    path.write_text(path.read_text().replace('"cpu"', '"cuda"'))
    with pytest.raises(Conflict, match="with --device cpu the last bits"):
        run(planned(bundle, rows), clock)


def test_a_run_goes_on_in_the_format_it_was_begun_in(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=0.1))
    run(plan, clock, time_budget_seconds=6.0, compute_dtype=torch.bfloat16)
    again = run(plan, clock)
    assert (again.resources["compute_dtype"], again.result["steps_done"]) == ("bfloat16", 12)


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
     '{"device_type": "cpu", "compute_dtype": "float32", "begun_with_rows": 8, "micro_batch_rows": 0}'],
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


def test_an_epsilon_below_the_compute_formats_spacing_is_refused(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    plan = planned(bundle, rows, dataclasses.replace(SETTINGS, epsilon=1e-6))
    with pytest.raises(InvalidRequest, match="bfloat16 loses"):
        run(plan, clock, compute_dtype=torch.bfloat16)


def test_micro_batched_equals_whole_batch_on_the_real_model(bundle: Bundle, rows: Path) -> None:
    from device_client.tuning.batches import BatchIndices

    data, model = planned(bundle, rows).data, load_model(bundle, device="cpu")
    losses = []
    for micro_batch_rows in (1, 3, 100):
        indices = BatchIndices(len(data.training), 8, seed=0)
        problem = ModelProblem(model, data.training, data.validation, "candidates", indices, micro_batch_rows)
        losses += problem.losses([model.initial_theta()], problem.batch(0))
    # float32 logits of order 1: padding changes their last bits only.
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


def test_a_problem_shrinks_to_one_sequence_and_no_further(bundle: Bundle, rows: Path) -> None:
    from device_client.tuning.batches import BatchIndices

    data = planned(bundle, rows).data
    model = load_model(bundle, device="cpu")
    problem = ModelProblem(model, data.training, data.validation, "vocabulary", BatchIndices(4, 2, 0), 5)
    assert [(problem.shrink(), problem.micro_batch_rows) for _ in range(4)] == [
        (True, 3), (True, 2), (True, 1), (False, 1)
    ]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, object], str]:
    code = main([*words, "--json"])
    streams = capsys.readouterr()
    return code, json.loads(streams.out), streams.err


def test_tune_eval_and_runs_by_command(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", "--data", str(rows), "--steps", "6", "--batch", "4", "--device", "cpu")
    code, tuned, spoken = call(capsys, *words)
    assert code == 0
    assert "best" in spoken
    run_name = Path(str(tuned["run"])).name
    code, again, spoken = call(capsys, *words)
    assert (code, again["was_finished"], again["result"]) == (0, True, tuned["result"])
    assert "finished" in spoken

    code, scored, _ = call(capsys, "eval", "--data", str(rows), "--run", run_name, "--device", "cpu")
    assert (code, scored["rows"]) == (0, 12)
    code, own, _ = call(capsys, "eval", "--data", str(rows), "--device", "cpu")
    assert own["loss"] != scored["loss"]

    code, listed, _ = call(capsys, "runs")
    (entry,) = listed["runs"]  # type: ignore[misc]
    assert (entry["name"], entry["state"], entry["steps_done"]) == (run_name, "finished", 6)
    (home / "runs" / run_name / "result.json").write_text("{")
    _, listed, _ = call(capsys, "runs")
    assert listed["runs"][0]["state"] == "damaged"  # type: ignore[index]


def test_eval_chooses_its_micro_batch_by_the_memory_budget(
    home: Path, rows: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", "--data", str(rows), "--device", "cpu")
    code, roomy, _ = call(capsys, *words)
    assert (code, roomy["micro_batch_rows"]) == (0, 24)  # 12 rows of two candidates each
    _, asked, _ = call(capsys, *words, "--micro-batch", "3")
    assert asked["micro_batch_rows"] == 3
    columns = max(example.token_count for example in planned(bundle, rows).data.test)
    enough_for_five = plan_memory(bundle.config, Workload(5, columns, 4), device_type="cpu").total_bytes
    code, tight, _ = call(capsys, *words, "--memory-budget", f"{enough_for_five + 100}")
    assert (code, tight["micro_batch_rows"]) == (0, 5)
    assert tight["loss"] == pytest.approx(roomy["loss"], abs=1e-5)
    code, _, spoken = call(capsys, *words, "--memory-budget", f"{enough_for_five}", "--micro-batch", "6")
    assert code == 8
    assert "--memory-budget" in spoken


def test_a_spent_time_budget_says_how_to_go_on(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("tune", "--data", str(rows), "--steps", "4000", "--validate-every", "1000", "--device", "cpu")
    code, tuned, spoken = call(capsys, *words, "--time-budget", "0.1")
    assert code == 0
    assert tuned["result"]["stopped_by"] == "time budget"  # type: ignore[index]
    assert "run the same command again to go on" in spoken
    _, _, spoken = call(capsys, *words, "--time-budget", "0.1")
    assert "Going on after step" in spoken


def test_data_check_counts_and_shows_scored_tokens(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, spoken = call(capsys, "data", "check", "--data", str(rows), "--max-tokens", "14")
    assert code == 0
    counts = found["rows"]["training"]  # type: ignore[index]
    assert (counts["count"], counts["longest_tokens"]) == (10, 14)
    assert counts["truncated_rows"] == 10
    assert found["token_histogram"] == {"16": 10}
    assert "⟦y⟧⟦e⟧⟦s⟧" in spoken
    assert re.search(r"no: \d+, yes: \d+", spoken)
    assert "good" not in json.dumps(found)


@pytest.mark.parametrize(("labels", "is_warned"), [("xxxxxxxxyy", False), ("xxxxxxxxxx", True)])
def test_data_check_warns_where_all_training_rows_have_the_same_answer(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, is_warned: bool
) -> None:
    rows = tmp_path / "labelled.jsonl"
    rows.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
    words = ("data", "check", "--data", str(rows), "--validation", str(rows), "--label-words", "x=no,y=yes")
    assert ("all training rows have the same answer" in call(capsys, *words)[2]) is is_warned


@pytest.mark.parametrize(
    ("content", "words", "code", "told"),
    [
        ('{"text": "a", "label": "x"}\n' * 9 + '{"text": "b"}\n', (), 9, "line 10: 'label' is missing"),
        ("", (), 9, "holds no rows"),
        (None, (), 9, "there is no file"),
        ('{"text": "a", "label": "x"}\n' * 9, (), 9, "at least two labels"),
        ("good", ("--lr", "fast"), 2, "--lr"),
        ("good", ("--memory-budget", "1MB"), 8, "memory budget"),
        ("good", ("--lr", "1e38"), 10, "--lr"),
        ("good", ("--seed", "-1"), 2, "--seed"),
        ("good", ("--steps", "0"), 2, "from 1 on"),
        ("good", ("--validation-share", "1"), 2, "between 0 and 1"),
        ("good", ("--epsilon", "nan"), 2, "above 0"),
        ("good", ("--time-budget", "soon"), 2, "duration"),
        ("good", ("--task", "RTE"), 2, "exactly one"),
        ("good", ("--device", "cuda:99"), 8, "CUDA"),
    ],
)
def test_bad_input_has_its_exit_code_and_says_what_to_do(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: tuple[str, ...], code: int,
    told: str,
) -> None:  # fmt: skip
    if content is None:
        rows.unlink()
    elif content != "good":
        rows.write_text(content)
    found, printed, spoken = call(capsys, "tune", "--data", str(rows), "--steps", "60", "--device", "cpu", *words)
    assert found == code
    assert told in spoken
    assert "error" in printed


def test_a_validation_label_unseen_in_training_is_exit_9(
    home: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = home / "validation.jsonl"
    other.write_text('{"text": "a", "label": "perhaps"}\n')
    code, _, spoken = call(capsys, "tune", "--data", str(rows), "--validation", str(other))
    assert code == 9
    assert "validation.jsonl line 1: its label" in spoken
    assert "perhaps" not in spoken


def test_a_diverged_run_keeps_its_best_values(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--steps", "60", "--lr", "1e38", "--output", str(home / "mine"), "--device", "cpu")
    code, _, _ = call(capsys, "tune", "--data", str(rows), *words)
    assert code == 10
    assert torch.isfinite(load_theta(home / "mine")).all()
    assert call(capsys, "eval", "--data", str(rows), "--run", str(home / "mine"), "--device", "cpu")[0] == 0


def test_an_unknown_run_is_exit_4(home: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, spoken = call(capsys, "eval", "--data", str(rows), "--run", "absent")
    assert code == 4
    assert "zo-device runs" in spoken


def test_no_runs_is_an_empty_list(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "runs")[1] == {"runs": []}
