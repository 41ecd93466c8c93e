"""What the system says of this machine's CPU."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""As Linux names them on x86-64 and on aarch64."""

_VECTOR_UNITS = {
    "AVX-512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "AVX2": frozenset({"avx2", "fma", "f16c"}),
    "NEON": frozenset({"asimd"}),
}
"""What the kernels are written for, the widest first, and what the system must name: see ``kernels/lanes.h``."""


def cpu_description(*fields: str) -> str:
    """Return the first line of /proc/cpuinfo that begins with one of ``fields``, or what Python knows of the CPU."""
    named = (line.partition(":")[2].strip() for line in _lines(CPUINFO) if line.lower().startswith(fields))
    return next(named, platform.processor() or platform.machine())


def has_bfloat16() -> bool:
    """Return whether the system names instructions for products in bfloat16, of vectors or of matrices."""
    return not _BFLOAT16_FLAGS.isdisjoint(cpu_description("flags", "features").split())


def vector_unit() -> str | None:
    """Return the widest unit of this CPU that the kernels are written for; None leaves loops to the compiler."""
    named = set(cpu_description("flags", "features").split())
    return next((name for name, needed in _VECTOR_UNITS.items() if needed <= named), None)


@functools.cache
def _lines(path: Path) -> list[str]:
    """Return the lines of a file, read once: of many cores the system takes long to write them."""
    return path.read_text().splitlines() if path.exists() else []
