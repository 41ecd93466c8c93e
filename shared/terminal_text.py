"""Text for a terminal that cannot command it: it comes from models, bundles and servers too.

Costs one pass over the text. Knows nothing about what is shown.
"""

from __future__ import annotations

_COMMANDS_OF_TERMINALS = dict.fromkeys(
    {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)} - {ord("\n"), ord("\t")}
)
"""Control characters (among them ESC) and those that turn the direction of writing."""


def printable(text: str) -> str:
    """Return a text without the characters that command a terminal; line feeds and tabs stay."""
    return text.translate(_COMMANDS_OF_TERMINALS)
