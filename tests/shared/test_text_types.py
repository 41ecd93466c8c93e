"""What is taken in can be stored and sent; what is shown is made so."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.text_types import PlainText, ShownText, showable_document

PLAIN: TypeAdapter[str] = TypeAdapter(PlainText)
SHOWN: TypeAdapter[str] = TypeAdapter(ShownText)


@pytest.mark.parametrize(
    ("text", "character"), [("\ud800", "U+D800"), ("a\udfffb", "U+DFFF"), ("\0", "U+0000"), ("x\ud83d", "U+D83D")]
)
def test_half_a_surrogate_pair_and_nul_are_refused_by_name(text: str, character: str) -> None:
    with pytest.raises(ValidationError, match=f"character {character.replace('+', '[+]')}, which is not text"):
        PLAIN.validate_python(text)


@pytest.mark.parametrize("text", ["", "\n\t\x01", "Grüße", "\U0001f600", "\ufffd\uffff"])
def test_all_other_text_is_taken_as_it_is_and_shown_as_it_is(text: str) -> None:
    assert PLAIN.validate_python(text) == text
    assert SHOWN.validate_python(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_whatever_is_shown_can_be_encoded_and_keeps_its_length(text: str) -> None:
    shown = SHOWN.validate_python(text)
    shown.encode()
    assert "\0" not in shown
    assert len(shown) == len(text)


def test_a_document_is_made_showable_with_its_keys() -> None:
    document = {"\ud800": ["a\0", {"b": 1, "c": None}], "d": True}
    shown = showable_document(document)
    assert shown == {"\ufffd": ["a\ufffd", {"b": 1, "c": None}], "d": True}
    json.dumps(shown, ensure_ascii=False).encode()
