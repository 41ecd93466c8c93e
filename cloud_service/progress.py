"""How a preparation tells where it is: a port with one method per thing worth telling.

The command line draws bars from it, a job's process turns it into events, tests collect it. Knows nothing about jobs.
"""

from __future__ import annotations

from typing import Protocol

from shared.api import Stage


class ProgressSink(Protocol):
    """Receives the progress of one preparation. A method may raise ``shared.errors.Interrupted`` to stop it."""

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        """Say that a stage begins and how many units of work it has; 0 where that is unknown."""

    def advance(self, done: int) -> None:
        """Say how many units of the current stage are done (absolute, so a resumed stage starts above 0)."""

    def note(self, message: str) -> None:
        """Say something a person should know, for example which checkpoint was resumed."""


class SilentProgress:
    """Tells nobody."""

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        """Ignore."""

    def advance(self, done: int) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""
