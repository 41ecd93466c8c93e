"""Whole runs that raise a metric: what rises, what a kill leaves, what is refused, and what is said of it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from killed_run import kill_at_step
from tiny_bundle import TinyBundle
from tiny_run import call, run

from device_client.cli import main
from device_client.tasks.checker import checker_command
from device_client.tasks.task_data import DataOptions
from device_client.tuning.journal import read_journal
from device_client.tuning.planned_run import PlannedRun, plan_run
from device_client.tuning.settings import Metric, TuneSettings
from shared.bundle.read import Bundle
from shared.errors import DataError, InvalidRequest, ResourceError

LETTERS = """
import json, sys
for line in sys.stdin:
    answer = json.loads(line)["answer"]
    print(sum(c.isascii() and c.isalpha() for c in answer) / max(1, len(answer)), flush=True)
"""
"""The share of an answer that is letters: the random model writes many that are not even text."""

SETTINGS = TuneSettings(
    steps=30, batch_size=8, validate_every=6, epsilon=0.3, step_length=0.2, metric="checker", answer_tokens=2
)


@pytest.fixture
def checker(tmp_path: Path) -> str:
    path = tmp_path / "letters.py"
    path.write_text(LETTERS)
    return shlex.join([sys.executable, str(path)])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Prompts to which nobody knows an answer."""
    words = ["abc", "hello", "red", "why not", "zebra", "12 34", "ok ok", "say it", "hade", "fig cab"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{word} {number}?"}) for number in range(3) for word in words))
    return path


def judged(bundle: Bundle, rows: Path, checker: str, settings: TuneSettings = SETTINGS) -> PlannedRun:
    settings = replace(settings, checker=checker, checker_digest=checker_command(checker).digest)
    return plan_run(bundle, settings, DataOptions(data=rows, validation_share=0.3), runs=rows.parent / "runs")


def test_a_checker_raises_what_it_judges_where_there_is_no_loss_at_all(
    bundle: Bundle, prompts: Path, checker: str, clock: Callable[[], float]
) -> None:
    report = run(judged(bundle, prompts, checker), clock)
    validation = report.result["validation"]
    assert validation["best"]["score"] > validation["bundle"]["score"] + 0.05
    assert validation["bundle"]["loss"] is None
    assert (report.result["metric"], report.result["objective"]) == ("checker", None)
    assert 0 < report.result["still_steps"] < 30
    scores = [json.loads(line)["score"] for line in (report.run / "metrics.jsonl").read_text().splitlines()]
    assert validation["best"]["score"] == max(scores)


def test_accuracy_rises_where_it_is_the_objective(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    settings = replace(SETTINGS, metric="accuracy", answer_tokens=None)
    plan = plan_run(bundle, settings, DataOptions(data=rows, validation=rows), runs=rows.parent / "runs")
    validation = run(plan, clock).result["validation"]
    assert validation["bundle"]["score"] == validation["bundle"]["accuracy"]
    assert validation["best"]["accuracy"] >= validation["bundle"]["accuracy"] + 1 / 12


@pytest.mark.parametrize("metric", ["exact-match", "f1"])
def test_free_answers_are_compared_with_what_the_model_writes(
    bundle: Bundle, tmp_path: Path, clock: Callable[[], float], metric: Metric
) -> None:
    """The random model repeats the last letter or so: what it writes now is asked for in half of the rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"{w} {w}", "completion": f" {w}"}) for w in "abcdefgh"))
    settings = replace(SETTINGS, steps=4, validate_every=2, metric=metric)
    plan = plan_run(bundle, settings, DataOptions(data=rows, validation=rows), runs=tmp_path / "runs")
    result = run(plan, clock).result
    assert (result["metric"], result["objective"]) == (metric, "vocabulary")
    assert 0 <= result["validation"]["bundle"]["score"] <= 1
    assert result["validation"]["bundle"]["loss"] > 0


def plan_to_kill(bundle: Bundle, prompts: Path, checker: str) -> PlannedRun:
    return judged(bundle, prompts, checker, SHORT)


SHORT = replace(SETTINGS, steps=8, validate_every=4)


def test_a_killed_run_goes_on_to_the_same_bytes(
    bundle: Bundle, tiny_bundle: TinyBundle, prompts: Path, checker: str, clock: Callable[[], float]
) -> None:
    plan = judged(bundle, prompts, checker, SHORT)
    whole = Path(shutil.move(run(plan, clock).run, prompts.parent / "whole"))

    kill_at_step(5, plan, __file__, tiny_bundle, prompts, checker)

    resumed = run(plan, clock).run
    for name in ("journal.bin", "metrics.jsonl", "last.safetensors", "best.safetensors", "result.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_checker_that_fails_in_the_middle_leaves_the_journal_and_the_run_goes_on(
    bundle: Bundle, prompts: Path, tmp_path: Path, clock: Callable[[], float]
) -> None:
    flag = tmp_path / "broken"
    path = tmp_path / "fragile.py"
    path.write_text(
        LETTERS.replace("    print(", f"    import os; os.path.exists({str(flag)!r}) and sys.exit(7)\n    print(")
    )
    plan = judged(bundle, prompts, shlex.join([sys.executable, str(path)]), SHORT)

    class Breaking:
        def __init__(self) -> None:
            self.looks = 0

        def __call__(self) -> float:
            self.looks += 1
            if self.looks == 5:
                flag.touch()
            return float(self.looks)

    with pytest.raises(DataError, match="ended with status 7"):
        run(plan, Breaking(), time_budget_seconds=1000.0)
    assert 0 < len(read_journal(plan.directory.journal)[1]) < 8
    flag.unlink()
    assert run(plan, clock).result["steps_done"] == 8


def test_rows_without_answers_need_a_checker(bundle: Bundle, prompts: Path) -> None:
    plain = replace(SETTINGS, metric=None, answer_tokens=None)
    for settings in (plain, replace(SETTINGS, metric="exact-match")):
        with pytest.raises(DataError, match="'completion' is missing"):
            plan_run(bundle, settings, DataOptions(data=prompts), runs=prompts.parent)


def test_another_checker_or_another_answer_length_is_another_run(bundle: Bundle, prompts: Path, checker: str) -> None:
    first = judged(bundle, prompts, checker).directory.path
    assert judged(bundle, prompts, checker + " --strict").directory.path != first
    assert judged(bundle, prompts, checker, replace(SETTINGS, answer_tokens=3)).directory.path != first
    Path(shlex.split(checker)[1]).write_text(LETTERS + "\n")
    assert judged(bundle, prompts, checker).directory.path != first


def test_answers_count_in_the_memory_plan(
    bundle: Bundle, prompts: Path, checker: str, clock: Callable[[], float]
) -> None:
    plan = judged(bundle, prompts, checker, replace(SHORT, answer_tokens=50))
    with pytest.raises(ResourceError, match="memory budget"):
        run(plan, clock, memory_budget_bytes=1 << 20)
    assert not plan.directory.path.exists()


def test_first_order_is_refused_by_the_objectives_name() -> None:
    with pytest.raises(InvalidRequest, match="first-order with the objective f1, which has no gradient"):
        replace(SETTINGS, metric="f1", gradient="first-order")


def test_tune_and_eval_by_command_speak_of_the_checker(
    home: Path, prompts: Path, checker: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("tune", "--data", str(prompts), "--checker", checker, "--answer-tokens", "2", "--steps", "4")
    code, tuned, spoken = call(capsys, *words)
    assert code == 0
    assert "checker" in spoken
    assert "found no difference and left the values alone" in spoken
    result = tuned["result"]
    run_name = Path(str(tuned["run"])).name

    code, scored, _ = call(capsys, "eval", "--data", str(prompts), "--run", run_name)
    assert (code, scored["metric"], scored["rows"], scored["loss"]) == (0, "checker", 30, None)
    code, own, _ = call(capsys, "eval", "--data", str(prompts), "--checker", checker, "--answer-tokens", "2")
    assert own["score"] == scored["score"] or result["best_step"] > 0  # type: ignore[index]

    assert main(["runs"]) == 0
    assert "checker" in capsys.readouterr().err

    code, refused, _ = call(capsys, "eval", "--data", str(prompts), "--run", run_name, "--objective", "f1")
    assert code == 2
    assert "was tuned with checker" in str(refused)
    Path(shlex.split(checker)[1]).write_text(LETTERS + "\n")
    code, changed, _ = call(capsys, "eval", "--data", str(prompts), "--run", run_name)
    assert code == 11
    assert "whose files have changed since" in str(changed)


@pytest.mark.parametrize(
    ("words", "code", "found"),
    [
        (("--objective", "f1", "--checker", "true"), 2, "--objective f1 with --checker"),
        (("--answer-tokens", "4"), 2, "for which the model writes nothing"),
        (("--objective", "accuracy", "--answer-tokens", "4"), 2, "for which the model writes nothing"),
        (("--checker", "no-such-command"), 2, "there is no such command"),
        (("--objective", "accuracy", "--gradient", "first-order"), 2, "the objective accuracy, which has no gradient"),
        (("--objective", "accuracy"), 9, "'completion' is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    home: Path, prompts: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, found: str
) -> None:
    refused, answer, _ = call(capsys, "tune", "--data", str(prompts), *words)
    assert refused == code
    assert found in str(answer)
    assert not (home / "runs").exists()
