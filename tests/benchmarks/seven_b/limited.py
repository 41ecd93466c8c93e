"""Runs a command under a hard limit on its memory, and measures the most that it had.

    address space   RLIMIT_AS: everything mapped counts, also files and what was reserved but never touched
    data            RLIMIT_DATA: private memory alone; mapped files do not count
    cgroup          a memory cgroup (version 1 or 2, as root): what is resident, of the process and all of its children
                    together; pages of files are taken back before anything fails

The kernel refuses whatever exceeds the limit (of a cgroup it ends the process). The peak is the largest
resident set of the process or of a child that it has waited for, as ``wait4`` tells; a process begins with what its
parent had, so nothing below that (some 250 MB) is measured. Knows nothing about the command.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_RESOURCES = {"address-space": resource.RLIMIT_AS, "data": resource.RLIMIT_DATA}
LIMITS = (*_RESOURCES, "cgroup")
_CGROUP_FILES = {"memory": "memory.limit_in_bytes", "": "memory.max"}
"""Controllers in /proc/self/cgroup of versions 1 and 2 → the file that holds the limit."""


@dataclass(frozen=True, slots=True)
class LimitedRun:
    """What came of a command.

    Attributes:
        limit_bytes: What it was allowed.
        limit_kind: One of ``LIMITS``.
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
        limit_kind: One of ``LIMITS``.
        environment: Variables on top of this process's own.

    Raises:
        SystemExit: It failed; the message names the log.
    """
    began = time.monotonic()
    with (
        log.open("ab") as errors,
        log.with_suffix(".json").open("wb") as output,
        _limiting(limit_kind, limit_bytes) as limit,
    ):
        child = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=errors,
            env=os.environ | dict(environment),
            preexec_fn=limit,
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit status {child.returncode}, see {log}")
    figures = LimitedRun(limit_bytes, limit_kind, usage.ru_maxrss * 1024, time.monotonic() - began)
    return figures, json.loads(log.with_suffix(".json").read_bytes())


@contextmanager
def _limiting(kind: str, limit_bytes: int) -> Iterator[Callable[[], object]]:
    """Yield what puts the process that calls it under the limit."""
    if kind != "cgroup":
        yield lambda: resource.setrlimit(_RESOURCES[kind], (limit_bytes, limit_bytes))
        return
    group = _own_memory_group() / f"limited-{os.getpid()}"
    group.mkdir()
    try:
        limit = next(group / name for name in _CGROUP_FILES.values() if (group / name).exists())
        limit.write_text(str(limit_bytes))
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def _own_memory_group() -> Path:
    """Return this process's memory cgroup.

    Raises:
        SystemExit: There is none.
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in _CGROUP_FILES:
            for mount in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
                group = Path(mount) / path.lstrip("/")
                if (group / "cgroup.procs").exists() and (controllers or mount == "/sys/fs/cgroup"):
                    return group
    raise SystemExit("there is no memory cgroup here: take another --limit")
