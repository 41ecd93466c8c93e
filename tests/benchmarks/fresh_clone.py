"""Does what a stranger does: clones the last commit into an empty folder and runs ``make test`` there.

The clone has no virtual environment, so the time holds all set-up (packages may come from pip's cache). Records
``tests.seconds``; ``demo.py`` does the same with ``make demo``. Takes about five minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import record_headlines, write_result

CHECKOUT = Path(__file__).resolve().parents[2]
DATA = CHECKOUT.parent / "shared" / "data"


def main() -> int:
    """Run the tests and record how long they took; exit with 1 where they failed."""
    with tempfile.TemporaryDirectory(prefix="zo-fresh-clone-") as folder:
        succeeded, seconds, output = run_in_clone(Path(folder) / "clone", "test")
    if not succeeded:
        print(output[-4000:], file=sys.stderr)
        return 1
    closing = [line for line in output.splitlines() if re.search(r"\d+ passed", line)][-1]
    counts = re.findall(r"(\d+) (passed|skipped|failed)", closing)
    make_test = {"seconds": seconds, **{word: int(count) for count, word in counts}}
    path = write_result("fresh_clone", {"commit": git("rev-parse", "HEAD"), "make_test": make_test})
    record_headlines(path, {"tests.seconds": (round(seconds, 1), "s")})
    print(path.read_text())
    return 0


def run_in_clone(folder: Path, target: str) -> tuple[bool, float, str]:
    """Clone, run ``make target``, and return whether it succeeded, its seconds and its output."""
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(folder)], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment.setdefault("ZO_DATA_DIR", str(DATA))
    started = time.perf_counter()
    result = subprocess.run(["make", target], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.returncode == 0, time.perf_counter() - started, result.stdout + result.stderr


def git(*arguments: str) -> str:
    """Return what git answers."""
    return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
