"""A row as the model will see it: a prompt, the answers it may give, and the right one.

Knows nothing about files, tokens or models.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptedRow:
    """A rendered row.

    Attributes:
        prompt: The text before the answer, without trailing space.
        answers: What may follow, verbatim, leading space included; one entry where the answer is free text.
        right: Index of the right answer.
        place: Where the row was read.
        ends_text: Whether the end-of-text token belongs to the answer.
    """

    prompt: str
    answers: tuple[str, ...]
    right: int
    place: str
    ends_text: bool = False
