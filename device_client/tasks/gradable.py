"""Which rows a goal can grade, and which answers it can never reach: known from the rows, before anything is tuned.

    loss, accuracy     rows with an answer
    exact match, F1    rows whose answer still has words where case, punctuation and articles make no difference
    checker            every row: it needs the prompt alone

What the model writes ends after so many tokens. An answer of the rows that is longer, its end-of-text token not
counted, is never written whole. Costs the decoding of answers. Knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from device_client.tasks.answer_text import normalised
from shared.tasks.examples import Example, TextEncoder

COMPARED = ("exact-match", "f1")
"""Metrics that compare what the model writes with the row's answer."""


@dataclass(frozen=True, slots=True)
class Gradable:
    """What a goal can say of some rows.

    Attributes:
        rows: How many it can grade.
        longer_answers: How many of the rows' own answers are longer than what the model writes; None where it writes
            nothing.
        longest_answer: Tokens of the longest of the rows' own answers; 0 where they have none.
    """

    rows: int
    longer_answers: int | None
    longest_answer: int


def gradable(
    examples: Sequence[Example], metric: str | None, answer_tokens: int | None, encoder: TextEncoder
) -> Gradable:
    """Return what a goal can say of rows that ``settled_objective`` accepts for it.

    Args:
        examples: The rows.
        metric: What is raised; None lowers the loss.
        answer_tokens: Most tokens that the model writes; None where it writes nothing.
        encoder: The model's tokenizer.
    """
    answers = [example.candidates[example.right] for example in examples if example.has_answer]
    rows = len(examples) if metric == "checker" else len(answers)
    if metric in COMPARED:
        rows = sum(bool(normalised(encoder.decode(answer))) for answer in answers)
    lengths = [len(answer) - (answer[-1] in encoder.eos_ids) for answer in answers]
    longer = None if answer_tokens is None else sum(length > answer_tokens for length in lengths)
    return Gradable(rows, longer, max(lengths, default=0))


def goal_warnings(
    examples: Sequence[Example], metric: str | None, answer_tokens: int | None, encoder: TextEncoder
) -> list[str]:
    """Return what a person should know of rows whose answers are compared with what the model writes."""
    if metric not in COMPARED:
        return []
    found, count = gradable(examples, metric, answer_tokens, encoder), len(examples)
    warnings = []
    if found.rows < count:
        warnings.append(
            f"{count - found.rows} of {count} answers have no words where case, punctuation and articles make no "
            f"difference (A is an article): {metric} cannot grade them. Next: answers in words, --objective accuracy "
            "for labels, or --checker"
        )
    if found.longer_answers:
        warnings.append(
            f"{found.longer_answers} of {count} answers have more tokens than the model writes ({answer_tokens}), so "
            f"it never writes them whole. Next: --answer-tokens {found.longest_answer}, or shorter answers"
        )
    return warnings
