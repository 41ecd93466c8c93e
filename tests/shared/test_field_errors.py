"""What pydantic refuses, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from shared import api
from shared.api import PATTERNS_IN_WORDS, PrepareRequest, TagMove
from shared.field_errors import FieldFault, first_fault, shown


def refused(model: type[BaseModel], document: Any) -> FieldFault:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return first_fault(caught.value)


def test_every_pattern_that_a_caller_can_miss_is_told_in_words() -> None:
    patterns = {value for name, value in vars(api).items() if name.endswith("_PATTERN")}
    assert set(PATTERNS_IN_WORDS) == patterns
    for field in ("name", "tag", "revision"):
        fault = refused(PrepareRequest, {"model": "m", field: "/"})
        assert fault.found_in(fault.field) == f'{field} = "/"'
        assert "^" not in fault.needed
    assert refused(TagMove, {"digest": "latest"}).needed == "sha256: followed by 64 lower-case hexadecimal digits"


def test_a_sentence_of_a_validator_is_kept_without_pydantics_prefix() -> None:
    assert refused(PrepareRequest, {"model": "m", "revision": "a..b"}).needed == "a revision without '..'"
    assert refused(PrepareRequest, {"model": "\0"}) == FieldFault("model", '"\\u0000"', "Unicode text without NUL")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("é", '"é"'),
        ("\x1b\x9b\u202e", '"\\u001b\\u009b\\u202e"'),
        ("\ud800", '"\\ud800"'),
        (Path("/data"), '"/data"'),
        (b"\xff", '"\N{REPLACEMENT CHARACTER}"'),
        ({"a": [1, True]}, '{"a": [1, true]}'),
        ("x" * 200, '"' + "x" * 119 + "…"),
    ],
)
def test_a_value_is_shown_as_json_that_no_terminal_obeys(value: object, text: str) -> None:
    assert shown(value) == text
