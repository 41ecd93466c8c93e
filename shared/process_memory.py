"""How much main memory this process uses, and has used at most.

Linux' own figures (``VmRSS`` and the high-water mark ``VmHWM`` of /proc/self/status); ``getrusage`` elsewhere, where
only the peak is known. Pages of mapped files count while they are in memory. A reading costs some microseconds.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def process_bytes() -> tuple[int, int]:
    """Return the bytes in use now and at most."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return _kibibytes(fields["VmRSS"]), _kibibytes(fields["VmHWM"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


def _kibibytes(field: str) -> int:
    return int(field.split()[0]) * 1024
