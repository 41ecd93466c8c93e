"""Which packages a benchmark's script imports, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def imported_of(script: Path, packages: str) -> list[str]:
    """Return which of ``packages``, named apart by spaces, are there once a script has been imported, sorted."""
    program = (
        f"import sys; sys.argv = ['x']; sys.path[:0] = [{str(script.parent)!r}]; import {script.stem}; "
        f"print(*sorted(set({packages!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()
