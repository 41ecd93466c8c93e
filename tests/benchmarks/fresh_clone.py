"""Does what a stranger does: clones the last commit into an empty folder and runs the two commands of the README.

``make test`` and ``make demo`` each start from a clone of their own without a virtual environment, so both times hold
all set-up (packages may come from pip's cache). Records ``tests.seconds`` and ``demo.*``. Takes about ten minutes.
"""

from __future__ import annotations

import json
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
    """Run both commands and record what they came to; exit with 1 where one of them failed."""
    with tempfile.TemporaryDirectory(prefix="zo-fresh-clone-") as folder:
        tested, seconds_tests, test_output = run_in_clone(Path(folder) / "for-test", "test")
        demonstrated, seconds_demo, demo_output = run_in_clone(Path(folder) / "for-demo", "demo")
        if not (tested and demonstrated):
            print(test_output[-4000:], demo_output[-4000:], file=sys.stderr)
            return 1
        figures = json.loads((Path(folder) / "for-demo" / "demo-output" / "result.json").read_text())
    closing = [line for line in test_output.splitlines() if re.search(r"\d+ passed", line)][-1]
    counts = re.findall(r"(\d+) (passed|skipped|failed)", closing)
    path = write_result(
        "fresh_clone",
        {
            "commit": git("rev-parse", "HEAD"),
            "make_test": {"seconds": seconds_tests, **{word: int(count) for count, word in counts}},
            "make_demo": {"seconds": seconds_demo, "figures": figures},
        },
    )
    record_headlines(
        path,
        {
            "tests.seconds": (round(seconds_tests, 1), "s"),
            "demo.seconds": (round(seconds_demo, 1), "s"),
            "demo.accuracy_before": (figures["accuracy_before"], "share"),
            "demo.accuracy_after": (figures["accuracy_after"], "share"),
            "demo.bundle_bytes_over_fp16": (round(figures["bundle_bytes_over_fp16"], 4), "ratio"),
        },
    )
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
