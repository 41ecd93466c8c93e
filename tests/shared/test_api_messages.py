"""Requests are validated before anything else happens."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shared.api import JobStatus, PrepareRequest, Progress


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


def test_terminal_states_are_the_last_three():
    assert [status for status in JobStatus if status.is_terminal] == ["succeeded", "failed", "cancelled"]


def test_progress_beyond_its_total_is_refused():
    with pytest.raises(ValidationError, match="progress 3 of 2"):
        Progress(done=3, total=2)
