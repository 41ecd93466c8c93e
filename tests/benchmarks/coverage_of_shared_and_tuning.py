"""Measures the line coverage of ``shared`` and of the tuning loop by the whole test suite.

What only subprocesses reach does not count. Records ``coverage.shared_percent`` and ``coverage.tuning_percent``, and
fails below 95.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from recording import record_headlines, write_result

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = {"shared": "shared/", "tuning": "device_client/tuning/", "all": ""}
LOWEST_PERCENT = 95.0


def main() -> int:
    """Run the tests under coverage and record what was reached; exit with 1 below 95 %."""
    with tempfile.TemporaryDirectory(prefix="zo-coverage-") as folder:
        files = measure(Path(folder))
    lines = {part: covered_lines(files, prefix) for part, prefix in PARTS.items()}
    percent = {part: round(100 * covered / total, 2) for part, (covered, total) in lines.items()}
    path = write_result("coverage", {"percent": percent, "lines": {part: list(pair) for part, pair in lines.items()}})
    headlines = {f"coverage.{part}_percent": (percent[part], "%") for part in ("shared", "tuning")}
    record_headlines(path, headlines)
    print(path.read_text())
    return 0 if min(percent["shared"], percent["tuning"]) >= LOWEST_PERCENT else 1


def measure(folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """Run pytest and return coverage's summary per file."""
    environment = os.environ | {"COVERAGE_FILE": str(folder / "data")}

    def coverage(*arguments: str) -> None:
        command = [sys.executable, "-m", "coverage", *arguments]
        subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, stdout=sys.stderr)

    coverage("run", "-m", "pytest", "-q")
    coverage("json", "--quiet", "-o", str(folder / "coverage.json"))
    files: dict[str, dict[str, dict[str, int]]] = json.loads((folder / "coverage.json").read_text())["files"]
    return files


def covered_lines(files: dict[str, dict[str, dict[str, int]]], prefix: str) -> tuple[int, int]:
    """Return (covered, all) executable lines of the files below ``prefix``."""
    summaries = [entry["summary"] for name, entry in files.items() if name.startswith(prefix)]
    return sum(s["covered_lines"] for s in summaries), sum(s["num_statements"] for s in summaries)


if __name__ == "__main__":
    sys.exit(main())
