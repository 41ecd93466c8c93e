"""Ends a text before the first of some strings, although it comes in pieces.

What may be the beginning of a stop string is held back until it is clear whether it is one. Costs a search of each
piece. Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets a text through up to the first stop string.

    Args:
        stops: Strings of at least one character; none of them stops nothing.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty")
        self._stops = list(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, piece: str) -> str:
        """Return what can be handed out now that this piece has come; nothing comes after a stop."""
        if self.is_stopped:
            return ""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return what was held back: the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if stop.startswith(text[-length:])), 0)
