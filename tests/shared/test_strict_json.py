"""JSON from strangers: what every library can take, or a ValueError."""

from __future__ import annotations

import pytest

from shared.strict_json import parse_json


@pytest.mark.parametrize("data", [b'{"a": [1, "\xc3\xa9"]}', b'\xef\xbb\xbf{"a": [1, "\\u00e9"]}', '{"a": [1, "é"]}'])
def test_json_in_utf_8_is_read_with_and_without_a_byte_order_mark(data: bytes | str) -> None:
    assert parse_json(data) == {"a": [1, "é"]}


def test_a_whole_pair_of_surrogates_is_one_character() -> None:
    assert parse_json(r'"\ud83d\ude00 \\ud83d"') == "😀 \\ud83d"


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        rb'"\ud800"',
        rb'{"\uDFFF": 1}',
        rb'[{"a": ["\ude00\ud83d"]}]',
        b'"\xed\xa0\x80"',
        b"[" * 100_000,
        b"1" * 5000,
        b"{",
    ],
    ids=["value", "key", "order", "bytes", "depth", "digits", "cut"],
)
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(data)


def test_a_key_named_twice_is_refused_where_it_is_asked_for() -> None:
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="an object names a key twice"):
        parse_json(b'[{"a": 1, "a": 2}]', has_unique_keys=True)
