"""A text ends before the first of some strings, however it is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_client.texts.stop_strings import StopStrings


def pushed(stops: list[str], pieces: list[str]) -> str:
    strings = StopStrings(stops)
    return "".join([*map(strings.push, pieces), strings.finish()])


def test_a_stop_string_that_comes_in_two_pieces_is_held_back_until_it_is_whole() -> None:
    strings = StopStrings(["END"])

    assert strings.push("ab E") == "ab "
    assert strings.push("N") == ""
    assert strings.push("D more") == ""
    assert strings.is_stopped
    assert strings.push("nothing comes any more") == strings.finish() == ""


def test_what_turns_out_to_be_no_stop_string_is_handed_out() -> None:
    strings = StopStrings(["END"])

    assert strings.push("E") == ""
    assert strings.push("NOUGH") == "ENOUGH"
    assert strings.push("EN") == ""
    assert strings.finish() == "EN"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_pieces_make_the_text_before_the_first_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    # The earliest stop to be *complete* ends the text: a reader of pieces cannot know of a longer one before it.
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)

    found = pushed(stops, pieces)

    assert text.startswith(found)
    if not ends:
        assert found == text
    else:
        assert not any(stop in found for stop in stops)
        assert len(found) <= max(begin for end, begin in ends if end == ends[0][0])
