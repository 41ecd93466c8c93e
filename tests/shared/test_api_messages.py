"""Requests are validated before anything else happens."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import ValidationError

from shared.api import CalibrationSpec, CalibrationTask, JobStatus, PrepareRequest, Progress
from shared.tasks.named_tasks import NAMED_TASKS


def test_a_model_is_enough_for_a_request_and_the_defaults_are_the_papers():
    request = PrepareRequest(model="meta-llama/Llama-2-7b-hf")
    assert (request.sparsity, request.scope, request.quantizer.bits) == (0.001, "per_tensor", 4)
    assert (request.calibration.text, request.calibration.sequences) == ("c4", 128)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sparsity", 0),
        ("sparsity", 2),
        ("sparsity", float("nan")),
        ("scope", "rows"),
        ("name", "Upper/Case"),
        ("name", "a/../b"),
        ("tag", "a b"),
        ("tag", "v1.sig"),
        ("tag", "sha256-" + "0" * 64 + ".sig"),
        ("revision", "main/../../x"),
        ("revision", "-x"),
        ("quantizer", {"bits": 5}),
        ("calibration", {"sequences": 1}),
        ("model", ""),
        ("unknown", 1),
    ],
)
def test_each_wrong_field_is_named(field, value):
    with pytest.raises(ValidationError) as caught:
        PrepareRequest.model_validate({"model": "a/b", field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_every_named_task_can_be_calibrated_on():
    assert set(get_args(CalibrationTask)) == {task.name for task in NAMED_TASKS} | {"rows"}


def test_a_task_is_named_in_any_case():
    assert CalibrationSpec.model_validate({"text": "tasks", "task": "sst-2"}).task == "SST-2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "SST-2"}, "the folder that holds the folder SST-2; c4 has no task rows"),
        ({"task": "rows"}, "a file of rows; c4 has no task rows"),
        ({"text": "tasks", "task": "MNLI"}, "'SST-2', 'RTE'"),
        ({"text": "tasks", "task": 3}, "'SST-2', 'RTE'"),
        ({"template": "{text} {label}"}, "the task 'rows', because"),
        ({"text": "t", "task": "SST-2", "label_words": {"0": "a", "1": "b"}}, "the task 'rows', because"),
        ({"text": "t", "task": "rows", "template": "{label} {text}"}, "{text} once and, after it, {label} once"),
        ({"text": "t", "task": "rows", "template": "{text} {text} {label}"}, "{text} once"),
        ({"text": "t", "task": "rows", "template": "no places"}, "{text} once"),
        ({"text": "t", "task": "rows", "label_words": {"0": "a", "1": "a"}}, "a word of its own"),
        ({"text": "t", "task": "rows", "label_words": {"0": "a", "1": ""}}, "a word of its own"),
        ({"text": "t", "task": "rows", "label_words": {"0": "a"}}, "at least 2"),
    ],
)
def test_a_calibration_on_rows_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        CalibrationSpec.model_validate(fields)


def test_terminal_states_are_the_last_three():
    assert [status for status in JobStatus if status.is_terminal] == ["succeeded", "failed", "cancelled"]


def test_progress_beyond_its_total_is_refused():
    with pytest.raises(ValidationError, match="progress 3 of 2"):
        Progress(done=3, total=2)
