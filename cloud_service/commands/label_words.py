"""The option ``--label-words label=word,label=word``, for argparse."""

from __future__ import annotations

import argparse

from shared.errors import InvalidRequest


def label_words(argument: str) -> dict[str, str]:
    """Return label → word.

    Raises:
        argparse.ArgumentTypeError: It is not of that form, or a label or word occurs twice.
    """
    from shared.tasks.templates import parse_label_words

    try:
        return parse_label_words(argument)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{argument!r}; needed: {error.needed}") from error
