"""Errors say what was found, what was needed and what to do; their codes are documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared import errors

EXIT_CODES = {
    "InvalidRequest": 2, "InvalidModelId": 2, "UnsupportedModel": 2, "Unauthorized": 3, "Forbidden": 3, "NotFound": 4,
    "Conflict": 11, "UpgradeNeeded": 5, "NetworkError": 6, "DiskError": 7, "ResourceError": 8, "DataError": 9,
    "Diverged": 10, "Interrupted": 130, "DigestMismatch": 5, "IndicesDuplicated": 5, "PublisherChanged": 5,
}  # fmt: skip


def all_errors() -> list[type[errors.ZoError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.ZoError)]


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_exit_codes_are_the_documented_ones(name, code):
    assert getattr(errors, name).exit_code == code


def test_a_message_holds_found_needed_and_next_step():
    error = errors.DataError(
        "line 3 has no label", needed="a label", next_step="zo-device data check FILE", param="data"
    )
    assert str(error) == "line 3 has no label\nNeeded: a label\nNext: zo-device data check FILE"
    assert (error.slug, error.param) == ("data-error", "data")


def test_every_error_is_drawn_in_the_tree_at_the_top_of_the_module():
    assert [error.__name__ for error in all_errors() if error.__name__ not in (errors.__doc__ or "")] == []


def test_every_fault_in_the_format_document_has_its_integrity_error():
    text = Path(errors.__file__).with_name("bundle").joinpath("FORMAT.md").read_text()
    named = set(re.findall(r"`([A-Z]\w+)`", text.split("## 8. Reading")[1]))
    faults = {error.__name__ for error in all_errors() if issubclass(error, errors.IntegrityError)}
    assert named == faults - {"IntegrityError"} | {"UpgradeNeeded"}
