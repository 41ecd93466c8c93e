"""Prompts and answers in tokens: the seam between them, truncation, end of text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shared.errors import DataError
from shared.tasks.examples import Example, encode_rows
from shared.tasks.prompted_row import PromptedRow

BOS, EOS = 1, 2


class LetterEncoder:
    """One token per letter (its code point), except that ``ab`` is one token, 1000: a merge across the seam."""

    def __init__(self, *, bos: bool = True, context_length: int = 12) -> None:
        self.bos_ids = [BOS] if bos else []
        self.eos_ids = [EOS]
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for letter in text:
            if letter == "b" and ids and ids[-1] == ord("a"):
                ids[-1] = 1000
            else:
                ids.append({"<": BOS, ">": EOS}.get(letter, ord(letter)))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("ab" if token == 1000 else chr(token) for token in ids if token not in (BOS, EOS))


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def encode(row: PromptedRow, encoder: LetterEncoder | None = None, *, max_tokens: int | None = None) -> Example:
    return encode_rows([row], encoder or LetterEncoder(), max_tokens=max_tokens)[0]


def test_an_answers_tokens_are_those_behind_the_prompt() -> None:
    example = encode(PromptedRow("xy", (" c", " de"), 1, "line 1"))
    assert example == Example((BOS, *ids("xy")), (ids(" c"), ids(" de")), 1, "line 1")
    assert not example.has_single_token_candidates
    assert example.token_count == 6


def test_a_merge_across_the_seam_moves_the_seam_for_all_answers() -> None:
    # "xa" + "b" is tokenised x·ab: only x precedes both answers.
    example = encode(PromptedRow("xa", ("b", "c"), 0, "line 1"))
    assert example.prompt == (BOS, ord("x"))
    assert example.candidates == ((1000,), (ord("a"), ord("c")))


def test_too_long_a_prompt_loses_its_beginning_but_not_bos() -> None:
    example = encode(PromptedRow("0123456789", ("c", "de"), 0, "line 1"), LetterEncoder(context_length=8))
    assert example.prompt == (BOS, *ids("56789"))
    assert (example.truncated_tokens, example.token_count) == (5, 8)


def test_max_tokens_truncates_sooner_than_the_context() -> None:
    assert encode(PromptedRow("0123456789", ("c", "d"), 0, "line 1"), max_tokens=5).prompt == (BOS, *ids("789"))
    assert encode(PromptedRow("0123456789", ("c", "d"), 0, "line 1"), max_tokens=99).truncated_tokens == 0


def test_a_completion_ends_with_the_end_of_text() -> None:
    row = PromptedRow("x", (" y",), 0, "line 1", ends_text=True)
    assert encode(row).candidates == ((*ids(" y"), EOS),)


def test_what_a_template_writes_behind_the_end_of_text_is_not_learned() -> None:
    row = PromptedRow("x", ("y>\n",), 0, "line 1", ends_text=True)
    assert encode(row).candidates == ((ord("y"), EOS),)


def test_a_template_that_writes_the_beginning_of_text_gets_no_second_one() -> None:
    assert encode(PromptedRow("<x", ("y",), 0, "line 1")).prompt == (BOS, ord("x"))


def test_an_answer_longer_than_the_context_names_the_line() -> None:
    with pytest.raises(DataError, match="line 9: an answer of 13 tokens"):
        encode(PromptedRow("x", ("0123456789ABC",), 0, "line 9"))


def test_an_empty_answer_names_the_line() -> None:
    with pytest.raises(DataError, match="line 9: an answer has no tokens"):
        encode(PromptedRow("x", ("",), 0, "line 9"))


def test_answers_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="same tokens"):
        encode(PromptedRow("x", ("y", "y"), 0, "line 9"))


def test_without_a_beginning_of_text_token_a_prompt_must_have_tokens() -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        encode(PromptedRow("", ("y",), 0, "line 9"), LetterEncoder(bos=False))
    assert encode(PromptedRow("", ("y",), 0, "line 9")).prompt == (BOS,)


def test_without_a_beginning_of_text_token_one_prompt_token_is_kept() -> None:
    encoder = LetterEncoder(bos=False, context_length=4)
    assert encode(PromptedRow("xy", ("abcd"[2:] + "e",), 0, "line 9"), encoder).prompt == (ord("y"),)
    with pytest.raises(DataError, match="an answer of 4 tokens"):
        encode(PromptedRow("xy", ("cdef",), 0, "line 9"), encoder)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(" <x> y", "begins a text"), (" x> y", "ends a text"), (" >y", "ends a text")],
)
def test_special_tokens_inside_an_answer_are_refused_by_line(answer: str, message: str) -> None:
    with pytest.raises(DataError, match=f"line 3: the answer holds, as text, the token that {message}"):
        encode(PromptedRow("q", (answer,), 0, "line 3", ends_text=True))


def test_what_a_template_writes_behind_the_end_is_cut_off() -> None:
    assert encode(PromptedRow("q", ("x>\n>",), 0, "line 3", ends_text=True)).candidates == ((ord("x"), EOS),)


def free(prompt: str, answer: str) -> PromptedRow:
    return PromptedRow(prompt, (answer,), 0, "line 9", ends_text=True)


def test_a_free_answer_that_does_not_fit_loses_its_end_and_the_prompt_keeps_a_quarter() -> None:
    # 12 positions, one of them the beginning: 11, of which the prompt keeps 11 // 4 = 2.
    example = encode(free("xyz", "0123456789ABC"))
    assert example == Example((BOS, *ids("yz")), (ids("012345678"),), 0, "line 9", 1, 5)
    assert example.token_count == 12


def test_a_free_answer_that_fits_alone_keeps_its_end() -> None:
    example = encode(free("xyz", "0123456789"))
    assert example == Example((BOS,), ((*ids("0123456789"), EOS),), 0, "line 9", 3, 0)


def test_no_room_for_any_token_of_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="line 9: an answer of 4 tokens"):
        encode(free("x", "abc0"), max_tokens=1)


class RefusingEncoder(LetterEncoder):
    def encode(self, text: str) -> list[int]:
        raise DataError("a text spells something", needed="other text")


def test_what_an_encoder_refuses_names_the_line() -> None:
    with pytest.raises(DataError, match="line 9: a text spells something"):
        encode(free("x", "y"), RefusingEncoder())
