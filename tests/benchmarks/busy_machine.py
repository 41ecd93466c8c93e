"""How much slower a preparation becomes beside another busy process: threads that wait asleep, and threads that spin.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/busy_machine.py

Prepares a small real model with as many threads as cores, alone and beside one process that computes all the time, each
way of waiting in turn. In proportion means: where one of c cores is half taken, a barrier waits for the slower half, so
at most 2 times as long. Writes ``results/busy_machine.json``. About five minutes; needs nothing else on the machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import record_headlines, write_result

ROUNDS = 3
DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data"))
WAYS = {"asleep": {}, "spinning": {"OMP_WAIT_POLICY": "active"}}


def main() -> None:
    """Measure and record."""
    seconds: dict[str, dict[str, list[float]]] = {way: {"alone": [], "beside": []} for way in WAYS}
    for _ in range(ROUNDS):
        for way, settings in WAYS.items():
            seconds[way]["alone"].append(_prepare(settings))
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
                try:
                    seconds[way]["beside"].append(_prepare(settings))
                finally:
                    busy.kill()
    slower = {
        way: statistics.median(two / one for one, two in zip(of["alone"], of["beside"], strict=True))
        for way, of in seconds.items()
    }
    path = write_result("busy_machine", {"seconds": seconds, "times_slower": slower})
    record_headlines(path, {"prepare.times_slower_beside_a_busy_process": (round(slower["asleep"], 2), "x")})
    print(path.read_text())


def _prepare(settings: dict[str, str]) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | settings
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "cloud_service.cli", "prepare", str(DATA / "models" / "picollama-real")),
            *("--output", f"{folder}/store"),
            *("--calibration-text", str(DATA / "text" / "c4"), "--sequences", "64", "--tokens", "256"),
            *("--evaluation-documents", "0"),
        ]
        started = time.perf_counter()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
