"""Logs as one JSON object per line, with the ids that tie lines together.

Every line has time, level, logger and message; ``request_id``, ``job_id`` and the other fields of ``extra`` where there
are any. No header, body or key is ever logged.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being answered, in the thread or task that answers it."""

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


def log_as_json(stream: TextIO, level: int = logging.INFO) -> None:
    """Send this process's logs to ``stream`` as JSON lines, replacing what was set up before."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
