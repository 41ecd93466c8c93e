"""Prompts and answers as token ids.

The tokens of an answer are those of ``prompt + answer`` behind the tokens that every ``prompt + answer`` of the row
shares with the prompt alone. So a vocabulary that merges letters across the seam is followed as the model was
trained, the leading space stays with the answer's first word, and all answers of a row continue one same prefix.

A sequence that is too long loses the beginning of its prompt: the end of the prompt, which asks the question, and the
answer stay. A free answer that does not fit alone loses its end, and the end-of-text token with it; the prompt then
keeps a quarter of the room. An answer to choose is never cut. Such rows are counted. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import DataError
from shared.tasks.prompted_row import PromptedRow


class TextEncoder(Protocol):
    """What is needed of a tokenizer."""

    @property
    def bos_ids(self) -> list[int]:
        """What every text starts with."""

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end a text."""

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens.

        Raises:
            DataError: The text cannot be encoded as it is meant.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens are left out."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row in tokens.

    Attributes:
        prompt: Ids before the answer, at least one, beginning-of-text included.
        candidates: Ids of each possible answer, at least one each; a single entry is a free completion, and none a
            prompt to which no answer is known.
        right: Index of the right candidate.
        place: Where the row was read.
        truncated_tokens: How many ids the prompt lost at its beginning.
        lost_answer_tokens: How many ids the answer lost at its end.
        row: The row's fields as they were read, where what judges answers is to see them.
    """

    prompt: tuple[int, ...]
    candidates: tuple[tuple[int, ...], ...]
    right: int
    place: str
    truncated_tokens: int = 0
    lost_answer_tokens: int = 0
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def has_answer(self) -> bool:
        """Whether an answer is known."""
        return bool(self.candidates)

    @property
    def is_free(self) -> bool:
        """Whether there is nothing to choose from."""
        return len(self.candidates) < 2

    @property
    def has_single_token_candidates(self) -> bool:
        """Whether one position's logits decide between all candidates."""
        return all(len(candidate) == 1 for candidate in self.candidates)

    @property
    def token_count(self) -> int:
        """Ids of the prompt with the longest answer."""
        return len(self.prompt) + max(map(len, self.candidates), default=0)


def encode_rows(rows: Iterable[PromptedRow], encoder: TextEncoder, *, max_tokens: int | None = None) -> list[Example]:
    """Return the rows in tokens, in order.

    Args:
        rows: Prompts with their answers.
        encoder: The model's tokenizer.
        max_tokens: Longest sequence, prompt and answer together; None or more than the context means the context.

    Raises:
        DataError: An answer to choose alone is longer than that, an answer has no tokens, or holds a token that begins
            a text, or one that ends it before its end; or two answers of a row have the same tokens.
    """
    limit = min(max_tokens or encoder.context_length, encoder.context_length)
    return [_encode_row(row, encoder, limit) for row in rows]


def _encode_row(row: PromptedRow, encoder: TextEncoder, limit: int) -> Example:
    bos = encoder.bos_ids
    try:
        alone = after_bos(encoder.encode(row.prompt), bos)
        wholes = [after_bos(encoder.encode(row.prompt + answer), bos) for answer in row.answers]
    except DataError as error:
        raise DataError(f"{row.place}: {error.found}", needed=error.needed, next_step=error.next_step) from error
    shared = min(_common_length(alone, whole) for whole in wholes)
    candidates = [_end(row, whole[shared:], encoder) if row.ends_text else whole[shared:] for whole in wholes]
    _check_candidates(row, candidates)
    if not bos and not shared:
        raise DataError(f"{row.place}: the prompt is empty and the model has no beginning-of-text token")
    room = limit - len(bos)
    longest = max(len(candidate) for candidate in candidates)
    # The first predicted token needs a token before it.
    most = room if bos else room - 1
    lost = 0
    if longest > most:
        fitting = most - min(shared, room // 4)
        if not row.ends_text or fitting < 1:
            raise DataError(
                f"{row.place}: an answer of {longest} tokens",
                needed=f"at most {limit - max(len(bos), 1)} tokens: the model reads {limit}",
                next_step="shorten or split the answer",
            )
        (answer,) = candidates
        candidates, lost = [answer[:fitting]], longest - fitting
        longest = fitting
    kept = alone[max(0, shared - (room - longest)) : shared]
    return Example(tuple(bos + kept), tuple(map(tuple, candidates)), row.right, row.place, shared - len(kept), lost)


def after_bos(ids: list[int], bos: list[int]) -> list[int]:
    """Return the ids behind a beginning-of-text token: chat templates often write it themselves."""
    return ids[len(bos) :] if bos and ids[: len(bos)] == bos else ids


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _end(row: PromptedRow, answer: list[int], encoder: TextEncoder) -> list[int]:
    """Cut behind the first end-of-text token; add one where there is none.

    What a template writes behind it is space and other ends. Text behind it is the user's, who did not mean a token:
    "<s>20</s> now 15" is struck-out text, and would teach the model to stop after 20.
    """
    if any(token in encoder.bos_ids and token not in encoder.eos_ids for token in answer):
        raise _special_text(row, "begins")
    for index, token in enumerate(answer):
        if token in encoder.eos_ids:
            if encoder.decode(answer[index + 1 :]).strip():
                raise _special_text(row, "ends")
            return answer[: index + 1]
    return answer + list(encoder.eos_ids[:1])


def _special_text(row: PromptedRow, does: str) -> DataError:
    return DataError(
        f"{row.place}: the answer holds, as text, the token that {does} a text",
        needed="an answer that is the model's own text to its end",
        next_step="write that part in another way, or remove the line",
    )


def _check_candidates(row: PromptedRow, candidates: Sequence[Sequence[int]]) -> None:
    if not all(candidates):
        raise DataError(f"{row.place}: an answer has no tokens", needed="an answer with text")
    if len({tuple(candidate) for candidate in candidates}) < len(candidates):
        raise DataError(
            f"{row.place}: two candidate answers have the same tokens",
            needed="answers that differ for the model",
            next_step="choose other words: --label-words label=word,…",
        )
