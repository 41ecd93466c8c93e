"""What the system says of this machine's CPU."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_description(*fields: str) -> str:
    """Return the first line of /proc/cpuinfo that begins with one of ``fields``, or what Python knows of the CPU."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith(fields))
    return next(named, platform.processor() or platform.machine())


def has_matrix_unit() -> bool:
    """Return whether the system names a unit for products of bfloat16 matrices (AMX)."""
    return "amx_bf16" in cpu_description("flags").split()
