"""Runs a command under a hard limit on its memory, and measures the most that it had.

    address space   RLIMIT_AS: everything mapped counts, also files and what was reserved but never touched
    data            RLIMIT_DATA: private memory alone; mapped files do not count

The kernel refuses whatever exceeds the limit, in the process and in each of its children. The peak is the largest
resident set of the process or of a child that it has waited for, as ``wait4`` tells; a process begins with what its
parent had, so nothing below that (some 250 MB) is measured. Knows nothing about the command.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LIMITS = {"address-space": resource.RLIMIT_AS, "data": resource.RLIMIT_DATA}


@dataclass(frozen=True, slots=True)
class LimitedRun:
    """What came of a command.

    Attributes:
        limit_bytes: What it was allowed.
        limit_kind: A key of ``LIMITS``.
        peak_bytes: Its largest resident set.
        seconds: How long it took.
    """

    limit_bytes: int
    limit_kind: str
    peak_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def run_limited(
    command: Sequence[str | Path], log: Path, *, limit_bytes: int, limit_kind: str, environment: Mapping[str, str] = {}
) -> tuple[LimitedRun, dict[str, Any]]:
    """Run a command that prints one JSON object; return its figures and that object.

    Args:
        command: Program and arguments.
        log: File for what it writes to stderr, kept.
        limit_bytes: What it may use.
        limit_kind: A key of ``LIMITS``.
        environment: Variables on top of this process's own.

    Raises:
        SystemExit: It failed; the message names the log.
    """
    kind = LIMITS[limit_kind]
    began = time.monotonic()
    with log.open("ab") as errors, log.with_suffix(".json").open("wb") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=errors,
            env=os.environ | dict(environment),
            preexec_fn=lambda: resource.setrlimit(kind, (limit_bytes, limit_bytes)),
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {child.returncode}, see {log}")
    figures = LimitedRun(limit_bytes, limit_kind, usage.ru_maxrss * 1024, time.monotonic() - began)
    return figures, json.loads(log.with_suffix(".json").read_bytes())
