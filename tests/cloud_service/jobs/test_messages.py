"""What a job's process may say: bounded, and cleaned of what cannot be stored or shown."""

from __future__ import annotations

import json

import pytest

from cloud_service.jobs.messages import Failed, Noted, parse_message
from cloud_service.jobs.record import job_error, printable
from shared.errors import DataError


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_a_note_is_cut_and_its_control_characters_replaced() -> None:
    noted = parse_message(line(kind="note", message="a\x1b[2J" + "x" * 3000))
    assert isinstance(noted, Noted)
    assert noted.message.startswith("a\ufffd[2Jx")
    assert len(noted.message) == 2000


def test_an_error_is_cut_too() -> None:
    error = {"type": "t" * 500, "message": "m" * 50_000, "param": "p" * 500}
    failed = parse_message(line(kind="failed", error=error))
    assert isinstance(failed, Failed)
    assert (len(failed.error.type), len(failed.error.message), len(failed.error.param or "")) == (100, 10_000, 100)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "advance", "done": 2**53},
        {"kind": "advance", "done": -1},
        {"kind": "stage", "stage": "calibrating", "total": 2**70},
        {"kind": "stage", "stage": "calibrating", "unit": "x" * 41},
        {"kind": "memory", "host_bytes": -1},
    ],
)
def test_numbers_that_a_database_cannot_hold_are_no_message(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_message(line(**fields))


def test_a_lone_surrogate_does_not_reach_what_a_failed_job_tells() -> None:
    assert printable("a\ud800b", 10) == "a?b"
    told = job_error(DataError("row \ud800 is not text"))
    assert told.model_dump_json().encode()
    assert told.message.startswith("row ? is not text\n")
