"""Waiting before a step while the machine should be left alone, and saying why.

A step is measured as a whole or not at all and depends on nothing but its number and θ, so a run that waited has the
same bits as one that did not. While it waits, everything done is on the disk.
Costs a look at the machine every few seconds. Knows nothing about models or steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

LOOK_EVERY_SECONDS = 5.0
SPEAK_EVERY_SECONDS = 600.0


class Rest(Protocol):
    """Waits where it should."""

    def is_due(self) -> bool:
        """Return whether the machine should be left alone now."""

    def wait(self, most_seconds: float | None) -> float:
        """Wait until it may be used again, or so long; return the seconds waited."""


class NoRest:
    """Never waits."""

    def is_due(self) -> bool:
        """Return False."""
        return False

    def wait(self, most_seconds: float | None) -> float:  # noqa: ARG002
        """Return at once."""
        return 0.0


class MachineRest:
    """Waits while there is a reason to.

    Args:
        reason: Looks at the machine and returns why to leave it alone, or None.
        say: Receives what a person should know.
        clock: Seconds that only grow.
        sleep: Lets so many seconds pass.
    """

    def __init__(
        self,
        reason: Callable[[], str | None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reason, self._say, self._clock, self._sleep = reason, say, clock, sleep
        self._looked_at = -math.inf
        self._found: str | None = None

    def is_due(self) -> bool:
        """Return whether the machine should be left alone; it is looked at every few seconds at most."""
        now = self._clock()
        if now - self._looked_at >= LOOK_EVERY_SECONDS:
            self._looked_at, self._found = now, self._reason()
        return self._found is not None

    def wait(self, most_seconds: float | None) -> float:
        """Wait until nothing speaks against going on, or so long; return the seconds waited."""
        begun_at = self._clock()
        until = math.inf if most_seconds is None else begun_at + most_seconds
        spoken_at = -math.inf
        while self.is_due() and (now := self._clock()) < until:
            if now - spoken_at >= SPEAK_EVERY_SECONDS:
                spoken_at = now
                since = f" for {_duration(now - begun_at)}" if now - begun_at >= SPEAK_EVERY_SECONDS else ""
                self._say(f"waiting{since}: {self._found}; Ctrl-C stops, and the same command continues")
            self._sleep(min(LOOK_EVERY_SECONDS, until - now))
        waited = self._clock() - begun_at
        if spoken_at > -math.inf:
            self._say(f"continuing after a pause of {_duration(waited)}")
        return waited


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds // 60:.0f} min"
