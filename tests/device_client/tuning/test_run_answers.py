"""What a finished run keeps of its answers: counts by label and a few rows, alike whether it was interrupted or not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import SETTINGS, planned, run

from device_client.model.loader import load_model
from device_client.planning.methods import METHODS, MethodName
from device_client.tasks.task_data import DataOptions
from device_client.tuning.answers import confusion_of, rows_shown, tokens_to_write
from device_client.tuning.planned_run import PlannedRun, plan_run
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.tuned_values import answer_as_tuned
from shared.bundle.read import Bundle
from shared.tasks.examples import Example

WORDS = {7: " bad", 8: " good"}


def row(right: int, candidates: tuple[tuple[int, ...], ...] = ((7,), (8,))) -> Example:
    return Example((1, 2), candidates, right, "a row")


def decode(ids: object) -> str:
    return "".join(WORDS[token] for token in ids)  # type: ignore[attr-defined]


def test_a_line_of_the_matrix_is_a_right_label_and_a_column_an_answer() -> None:
    found = confusion_of([row(0), row(0), row(1), row(1)], (0, 1, 1, 1), (0, 0, 0, 1), decode)
    assert found == {
        "labels": ["bad", "good"],
        "confusion": {"before": [[1, 1], [0, 2]], "after": [[2, 0], [1, 1]]},
    }


def test_rows_with_answers_of_their_own_have_no_matrix() -> None:
    rows = [row(0), row(0, ((8,), (7,)))]
    assert confusion_of(rows, (0, 0), (0, 0), decode) == {"labels": None, "confusion": None}


def test_shown_rows_stand_at_equal_distances() -> None:
    assert rows_shown([row(0)] * 25, 10) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    assert rows_shown([row(0)] * 3, 10) == [0, 1, 2]
    assert rows_shown([row(0)] * 3, 0) == []


def test_an_answer_has_as_many_tokens_as_the_longest_right_one_and_at_most_64() -> None:
    assert tokens_to_write([row(0, ((7,) * 5,)), row(0, ((7,) * 9,))]) == 9
    assert tokens_to_write([row(0, ((7,) * 900,))]) == 64
    assert tokens_to_write([Example((1,), (), 0, "a prompt alone")]) == 64


def answers_of(folder: Path) -> dict[str, Any]:
    found = RunDirectory(folder).read_json("answers.json")
    assert found is not None
    return found


def test_the_matrix_says_what_the_accuracy_says(bundle: Bundle, rows: Path, clock: Callable[[], float]) -> None:
    report = run(planned(bundle, rows), clock)
    answers = answers_of(report.run)
    assert (answers["part"], answers["rows"], len(answers["shown"])) == ("test", 12, 10)
    for when, stage in (("before", "bundle"), ("after", "best")):
        right = sum(answers["confusion"][when][label][label] for label in (0, 1))
        assert right / 12 == report.result["test"][stage]["accuracy"]
    assert {shown["right"] for shown in answers["shown"]} == set(answers["labels"])


def test_without_test_rows_validation_rows_are_kept_as_they_come_out_again(
    bundle: Bundle, rows: Path, clock: Callable[[], float]
) -> None:
    """A run that continues has its first validations in a file, without answers, and asks again."""
    plan = plan_run(bundle, SETTINGS, DataOptions(data=rows, validation_share=0.25), runs=rows.parent / "runs")
    whole = shutil.move(run(plan, clock).run, rows.parent / "whole")
    run(plan, clock, time_budget_seconds=6.0)
    assert not (plan.directory.path / "answers.json").exists()  # it is not finished
    continued = run(plan, clock).run
    assert answers_of(continued) == answers_of(Path(whole))
    assert answers_of(continued)["part"] == "validation"


def completions(bundle: Bundle, folder: Path, method: MethodName = "sparse", blocks: str = "all") -> PlannedRun:
    path = folder / "free.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{word} {i}", "completion": f" no {i}"})
                              for i in range(4) for word in ("good", "bad")))  # fmt: skip
    settings = dataclasses.replace(SETTINGS, method=method, blocks=blocks, epsilon=METHODS[method].epsilon)
    return plan_run(bundle, settings, DataOptions(data=path, validation_share=0.5), runs=folder / "runs")


@pytest.mark.parametrize(
    ("method", "blocks"), [("sparse", "all"), ("sparse", "upper:1"), ("lora", "all"), ("prefix", "all")]
)
def test_free_rows_are_answered_in_writing_as_the_bundle_and_as_the_tuned_model_write(
    bundle: Bundle, tmp_path: Path, clock: Callable[[], float], method: MethodName, blocks: str
) -> None:
    plan = completions(bundle, tmp_path, method, blocks)
    folder = run(plan, clock).run
    answers = answers_of(folder)
    assert (answers["labels"], answers["confusion"], len(answers["shown"])) == (None, None, 4)

    def written(is_tuned: bool) -> list[str]:
        model = load_model(bundle, device="cpu")
        if is_tuned:
            answer_as_tuned(RunDirectory(folder), model)
        tokens = max(len(example.candidates[0]) for example in plan.data.validation)
        stops = model.tokenizer.eos_ids
        return [
            model.tokenizer.decode(
                list(model.generate(list(example.prompt), max_new_tokens=tokens, stop_ids=stops))
            ).strip()
            for example in plan.data.validation
        ]

    assert [shown["before"] for shown in answers["shown"]] == written(is_tuned=False)
    assert [shown["after"] for shown in answers["shown"]] == written(is_tuned=True)
