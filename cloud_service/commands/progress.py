"""Shows a preparation's progress on standard error: a bar with rate and ETA, or plain lines where it is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cloud_service.progress import ProgressSink, SilentProgress
from shared.api import Stage

_LINE_SECONDS = 5.0


class BarProgress:
    """One bar per stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        """Finish the bar before and begin another."""
        self._finish()
        self._task = self._bars.add_task(stage, total=total or None, unit=unit)

    def advance(self, done: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def note(self, message: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(message, highlight=False, markup=False)

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self._bars.tasks if task.id == self._task)
            self._bars.update(self._task, total=task.total or task.completed or 1, completed=task.total or 1)


class LineProgress:
    """One line per stage and note, and every few seconds in between."""

    def __init__(self) -> None:
        self._stage, self._total, self._unit, self._next = "", 0, "", 0.0

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        """Print the stage."""
        self._stage, self._total, self._unit = stage, total, unit
        self._next = time.monotonic() + _LINE_SECONDS
        self._print(stage)

    def advance(self, done: int) -> None:
        """Print how far it is, not too often."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            total = f"/{self._total}" if self._total else ""
            self._print(f"{self._stage} {done}{total} {self._unit}".rstrip())

    def note(self, message: str) -> None:
        """Print the message."""
        self._print(message)

    @staticmethod
    def _print(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


@contextlib.contextmanager
def terminal_progress(*, is_quiet: bool) -> Iterator[ProgressSink]:
    """Yield what shows progress best here."""
    console = Console(stderr=True)
    if is_quiet:
        yield SilentProgress()
    elif not console.is_terminal:
        yield LineProgress()
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
            yield BarProgress(bars)
