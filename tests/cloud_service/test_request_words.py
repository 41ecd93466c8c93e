"""A job's error speaks of fields where the pipeline spoke of options."""

from __future__ import annotations

import argparse

import pytest

from cloud_service.commands.prepare import add_request_options
from cloud_service.jobs.record import job_error
from cloud_service.request_words import OPTION_FIELDS, in_request_words
from shared.api import PrepareRequest
from shared.errors import DataError


def test_every_option_of_a_request_names_a_field_that_exists() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    add_request_options(parser)
    assert {action.option_strings[0]: action.dest for action in parser._actions} == OPTION_FIELDS
    schema = PrepareRequest.model_json_schema()
    for field in OPTION_FIELDS.values():
        parent, _, name = field.rpartition(".")
        fields = schema["$defs"][f"{parent.title()}Spec"] if parent else schema
        assert name in fields["properties"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("give more rows, or at most --sequences 5", "give more rows, or at most calibration.sequences 5"),
        ("--calibration-text, --evaluation-text", "calibration.text, evaluation.text"),
        ("a -- b, --tokens-left", "a -- b, --tokens-left (what belongs to zo-cloud is the operator's to change)"),
        ("give --ray-workers 4", "give --ray-workers 4 (what belongs to zo-cloud is the operator's to change)"),
        ("the operator sets --max-host-bytes", "the operator sets --max-host-bytes"),
        ("nothing to change", "nothing to change"),
    ],
)
def test_options_become_fields_and_others_are_said_to_be_the_operators(text: str, said: str) -> None:
    assert in_request_words(text) == said


def test_a_failed_job_tells_its_error_in_the_words_of_a_request() -> None:
    error = DataError(
        "3 rows", needed="8 rows", next_step="zo-cloud prepare --sequences 3", next_request="see /v1/jobs"
    )
    assert job_error(error).message == "3 rows\nNeeded: 8 rows\nNext: see /v1/jobs"
    typed = DataError("3 rows", next_step="give at most --sequences 3", param="calibration.sequences")
    assert job_error(typed).message == "3 rows\nNext: give at most calibration.sequences 3"
