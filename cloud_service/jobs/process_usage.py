"""What a process and all its descendants use, from Linux' /proc; elsewhere nothing is known.

Costs one small read for each process of the machine, and another for each descendant: some milliseconds.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from cloud_service.jobs.limits import Usage

_PROCESSES = Path("/proc")


def descendants(pid: int) -> list[int]:
    """Return the processes that came from ``pid`` and have not ended, without ``pid`` itself."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid_text in os.listdir(_PROCESSES) if _PROCESSES.exists() else ():  # noqa: PTH208 - often: no Path for each
        if pid_text.isdigit() and (status := _read(int(pid_text), "stat")):
            state, parent = status.rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children[int(parent)].append(int(pid_text))
    found, waiting = [], [pid]
    while waiting:
        new = children.pop(waiting.pop(), [])
        found += new
        waiting += new
    return found


def tree_usage(pid: int) -> Usage:
    """Return what ``pid`` and its descendants use; shared memory counts once, as its largest user has it."""
    anonymous, shared, tasks = 0, 0, 0
    for member in (pid, *descendants(pid)):
        fields = dict(line.split(":", 1) for line in _read(member, "status").splitlines() if ":" in line)
        anonymous += _kibibytes(fields.get("RssAnon"))
        shared = max(shared, _kibibytes(fields.get("RssShmem")))
        tasks += int(fields.get("Threads", "0"))
    return Usage(memory_bytes=anonymous + shared, tasks=tasks)


def _read(pid: int, name: str) -> str:
    try:
        return (_PROCESSES / str(pid) / name).read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def _kibibytes(field: str | None) -> int:
    return int(field.split()[0]) * 1024 if field else 0
