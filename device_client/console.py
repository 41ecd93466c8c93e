"""What people see, all of it on stderr: messages, tables and progress with rate and time left.

On a terminal progress is a bar; elsewhere it is a plain line every few seconds. ``quiet`` leaves only warnings and
errors. Stdout belongs to ``--json``. Texts come from bundles and servers too, so whatever could command a terminal is
taken out of all of them here. Knows nothing about what is being done.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

import rich.console
import rich.table
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from shared.byte_sizes import format_bytes
from shared.terminal_text import printable

PLAIN_LINE_SECONDS = 5.0
PIPED_COLUMNS = 1000


class ProgressBar(Protocol):
    """The progress of one piece of work; may be called from several threads."""

    def advance(self, amount: float = 1) -> None:
        """Say that ``amount`` more units are done."""

    def update(self, done: float, *, note: str = "") -> None:
        """Say how many units are done in all, and optionally something short about the current state."""


class Console:
    """Speaks to people.

    Args:
        is_quiet: Whether only warnings and errors are shown.
        has_color: Whether colours may be used.
        stream: Where to write; stderr by default.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        is_quiet: bool = False,
        has_color: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_quiet = is_quiet
        self._clock = clock
        self._rich = rich.console.Console(
            file=stream or sys.stderr, no_color=not has_color, highlight=False, markup=False, emoji=False
        )
        if not self._rich.is_terminal:  # names in a table must come out whole where a program reads them
            self._rich.width = PIPED_COLUMNS

    def say(self, text: str) -> None:
        """Show a message."""
        if not self.is_quiet:
            self._rich.print(printable(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Show a warning, also in quiet mode."""
        self._rich.print(f"Warning: {printable(text)}", style="yellow", soft_wrap=True)

    def error(self, text: str) -> None:
        """Show an error, also in quiet mode."""
        self._rich.print(f"Error: {printable(text)}", style="red", soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table."""
        if self.is_quiet:
            return
        table = rich.table.Table(title=Text(printable(title)), title_justify="left")
        for column in columns:
            table.add_column(Text(printable(column)), overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(str(cell))) for cell in row))
        self._rich.print(table)

    @contextmanager
    def progress(self, description: str, total: float, unit: str) -> Iterator[ProgressBar]:
        """Show the progress of the work done inside the ``with`` block.

        Args:
            description: What is being done, in a few words.
            total: Units in all; 0 where that is unknown.
            unit: Name of the unit; ``B`` is shown in KiB, MiB, …
        """
        if self.is_quiet:
            yield _SilentBar()
        elif self._rich.is_terminal:
            with _bars(self._rich, unit) as bars:
                yield _RichBar(bars, bars.add_task(printable(description), total=total or None, note=""))
        else:
            bar = _PlainBar(self.say, description, total, unit, self._clock)
            yield bar
            bar.finish()


class _SilentBar:
    def advance(self, amount: float = 1) -> None:
        pass

    def update(self, done: float, *, note: str = "") -> None:
        pass


class _RichBar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._task, amount)

    def update(self, done: float, *, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=printable(note))


class _PlainBar:
    """Writes a line at the first report, every few seconds after it, and at the end."""

    def __init__(
        self, say: Callable[[str], None], description: str, total: float, unit: str, clock: Callable[[], float]
    ) -> None:
        self._say, self._description, self._total, self._unit, self._clock = say, description, total, unit, clock
        self._lock = threading.Lock()
        self._done, self._note = 0.0, ""
        self._begin, self._begin_done = clock(), 0.0
        self._spoken_at: float | None = None

    def advance(self, amount: float = 1) -> None:
        with self._lock:
            self._report(self._done + amount, self._note)

    def update(self, done: float, *, note: str = "") -> None:
        with self._lock:
            self._report(done, note)

    def finish(self) -> None:
        with self._lock:
            self._speak(self._clock())

    def _report(self, done: float, note: str) -> None:
        self._done, self._note = done, note
        now = self._clock()
        if self._spoken_at is None:
            self._begin, self._begin_done = now, done
        if self._spoken_at is None or now - self._spoken_at >= PLAIN_LINE_SECONDS:
            self._speak(now)

    def _speak(self, now: float) -> None:
        self._spoken_at = now
        seconds, gained = now - self._begin, self._done - self._begin_done
        rate = gained / seconds if seconds > 0 else 0.0
        parts = [f"{self._description}: {_amount(self._done, self._total, self._unit)}"]
        if rate > 0:
            parts.append(f"{_quantity(rate, self._unit)}/s")
            if self._total > self._done:
                parts.append(f"{(self._total - self._done) / rate:.0f} s left")
        self._say(", ".join([*parts, self._note] if self._note else parts))


class _AmountColumn(ProgressColumn):
    """Done, total and rate in the task's unit."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = f"  {_quantity(speed, self._unit)}/s" if speed else ""
        return Text(_amount(task.completed, task.total or 0, self._unit) + rate)


def _bars(console: rich.console.Console, unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _AmountColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


def _amount(done: float, total: float, unit: str) -> str:
    if unit == "B":
        return f"{format_bytes(done)} of {format_bytes(total)}" if total else format_bytes(done)
    return f"{done:.0f} of {total:.0f} {unit}" if total else f"{done:.0f} {unit}"


def _quantity(rate: float, unit: str) -> str:
    return format_bytes(rate) if unit == "B" else f"{rate:.3g} {unit}"
