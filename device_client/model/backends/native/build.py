"""Compile the kernels for this machine, once.

A plain C interface needs no header of torch or Python: compiling takes about two seconds, where an extension of torch
takes half a minute and a build tool besides. The library is named after what it depends on (source, flags, the CPU's
features), so a changed source is compiled anew and a home folder shared by several machines does no harm.
It multiplies with as many threads as torch; compiled by GCC, in torch's own OpenMP runtime. One file of about 150 KB.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from device_client.model.backends.native.cpu import cpu_description

SOURCES = Path(__file__).with_name("kernels")
_MAIN = SOURCES / "kernels.cpp"
COMPILERS = ("c++", "g++", "clang++")
NUMERIC_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-w")
"""What the bits of results depend on, for any kind of CPU."""

_FLAGS = (*NUMERIC_FLAGS, "-shared", "-fPIC")
_TIMEOUT_SECONDS = 120


class BuildFailed(Exception):
    """The kernels cannot be compiled here; the text says why."""


def built_library(folder: Path, announce: Callable[[str], None], *, tuning: str | None = None) -> Path:
    """Return the compiled kernels, compiling them where that has not happened yet.

    Args:
        folder: Where compiled kernels are kept; made where it is missing.
        announce: Is told before a compilation begins.
        tuning: The compiler's flag for the kind of CPU; None is this machine's own.

    Raises:
        BuildFailed: There is no compiler, it refuses, or the folder cannot be written.
    """
    flags = [*_FLAGS, tuning or _tuning_flag()]
    library = folder / f"kernels-{_digest(flags)}.so"
    if not library.exists():
        compiler = find_compiler()
        announce(f"compiling the CPU kernels once, with {compiler}")
        _compile([compiler, *flags], library)
    return library


def find_compiler() -> str:
    """Return the path of a C++ compiler.

    Raises:
        BuildFailed: There is none.
    """
    for name in COMPILERS:
        path = shutil.which(name)
        if path is not None:
            return path
    raise BuildFailed(f"no C++ compiler ({', '.join(COMPILERS)}) is installed")


def _tuning_flag() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"


def _digest(flags: list[str]) -> str:
    sources = [path.read_bytes() for path in sorted(SOURCES.glob("*.*"))]
    target = f"{platform.machine()} {cpu_description('flags', 'features')}"
    parts = (*sources, repr(flags).encode(), target.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _compile(command: list[str], library: Path) -> None:
    """Compile beside the final name and rename last, so that a half-written library is never loaded."""
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            _run([*command, str(_MAIN), "-o", str(made)])
            made.rename(library)
    except OSError as error:
        raise BuildFailed(f"{library.parent} cannot be written: {error.strerror}") from error


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BuildFailed(f"{command[0]} fails: {lines[0][:200]}")
