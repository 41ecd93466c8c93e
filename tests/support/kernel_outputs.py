"""Digests of what the compiled kernels make of inputs that are alike on every machine; see ``kernel_outputs.cpp``.

For aarch64 the kernels are cross-compiled and run by qemu's user emulation (Debian: ``g++-aarch64-linux-gnu`` and
``qemu-user-static``).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from device_client.model.backends.native.build import NUMERIC_FLAGS, SOURCES, find_compiler

_PROGRAM = Path(__file__).with_suffix(".cpp")
_ARM_COMPILER, _EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def outputs_of_library(library: Path, folder: Path) -> dict[str, str]:
    """Return kernel and case → digest of the bits, of kernels that were compiled for this machine."""
    program = folder / f"outputs-{library.stem}"
    _compile([find_compiler(), *NUMERIC_FLAGS, "-O0", "-I", SOURCES, _PROGRAM, library, "-o", program])
    return _run([program])


def outputs_on_arm(folder: Path) -> dict[str, str]:
    """Return the same of kernels for aarch64."""
    program = folder / "outputs-aarch64"
    source = SOURCES / "kernels.cpp"
    _compile([_ARM_COMPILER, *NUMERIC_FLAGS, "-static", "-I", SOURCES, _PROGRAM, source, "-o", program])
    return _run([_EMULATOR, program])


def kernels_in(outputs: dict[str, str]) -> set[str]:
    """Return the names of the kernels that were run."""
    return {case.partition(" ")[0] for case in outputs}


def _compile(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr)


def _run(command: list[str | Path]) -> dict[str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    cases = [line.rpartition(" ") for line in done.stdout.splitlines()]
    return {case: digest for case, _, digest in cases}
