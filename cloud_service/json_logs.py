"""Logs as one JSON object per line, with the ids that tie lines together.

Every line has time, level, logger and message; ``request_id``, ``job_id`` and the other fields of ``extra`` where there
are any. No header, body or key is ever logged.

No kind of line can flood the log: of one logger, level and template only so many pass in ten seconds; a line then says
how many were left out. The requests themselves are such a kind too, with a bound that normal traffic does not reach.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being answered, in the thread or task that answers it."""

WINDOW_SECONDS = 10.0
FAULT_LINES = 20
"""Of one kind of warning or error."""
EVENT_LINES = 1000
"""Of one kind of other lines, such as jobs that are queued."""
REQUEST_LINES = 20_000
"""Of requests: more than this service can answer."""

_REQUEST_LOGGER = "cloud_service.routes.requests"
_MAX_KINDS = 1000
_Kind = tuple[str, int, str]
_FIELDS = ("event", "job_id", "attempt", "method", "path", "status", "milliseconds", "url", "freed")


class JsonFormatter(logging.Formatter):
    """Writes a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class FloodGuard:
    """Lets so many lines of one kind through in ten seconds, and tells the next time how many it left out.

    What was left out last is told with the next line of any kind, so silence afterwards hides nothing but its number.

    Args:
        tell: Receives the records that say how many lines were left out.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        tell: Callable[[logging.LogRecord], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._windows: OrderedDict[_Kind, _Window] = OrderedDict()

    def passes(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes; called under the handler's lock."""
        now = self._clock()
        self._close_windows(lambda window: now - window.started >= WINDOW_SECONDS)
        # Messages that were formatted by their writer differ after the first line, as a traceback does.
        kind = (record.name, record.levelno, str(record.msg).partition("\n")[0][:200])
        window = self._windows.setdefault(kind, _Window(now))
        window.lines += 1
        if len(self._windows) > _MAX_KINDS:
            self._close_windows(lambda _: True)
        return window.lines <= _bound(record.name, record.levelno)

    def finish(self) -> None:
        """Tell what was left out and not told yet."""
        self._close_windows(lambda _: True)

    def _close_windows(self, is_over: Callable[[_Window], bool]) -> None:
        while self._windows and is_over(next(iter(self._windows.values()))):
            (name, level, template), window = self._windows.popitem(last=False)
            left_out = window.lines - _bound(name, level)
            if left_out > 0:
                arguments = (left_out, template)
                self._tell(logging.LogRecord(name, level, __file__, 0, "left out %d lines like: %s", arguments, None))


def _bound(logger: str, level: int) -> int:
    if level >= logging.WARNING:
        return FAULT_LINES
    return REQUEST_LINES if logger == _REQUEST_LOGGER else EVENT_LINES


@dataclass(slots=True)
class _Window:
    """The lines of one kind since a moment."""

    started: float
    lines: int = 0


class _GuardedHandler(logging.StreamHandler[TextIO]):
    """Writes what a ``FloodGuard`` lets pass."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._guard = FloodGuard(self.emit)

    def handle(self, record: logging.LogRecord) -> bool:
        with self.lock or contextlib.nullcontext():
            is_passed = self._guard.passes(record)
            if is_passed:
                self.emit(record)
        return is_passed

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # the stream may be closed already
            self._guard.finish()
        super().close()


def log_as_json(stream: TextIO, level: int = logging.INFO) -> None:
    """Send this process's logs to ``stream`` as JSON lines, replacing what was set up before."""
    handler = _GuardedHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
