"""How fast the service answers after its start, and what it takes: the web process imports no torch.

Starts ``zo-cloud serve`` on an empty folder several times, asks ``/readyz`` until it says yes, and reads the process's
resident memory. Writes ``results/service_start.json``, ``service.ready_seconds`` and ``service.resident_bytes``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from recording import record_headlines, write_result

RUNS = 5
LONGEST_SECONDS = 60


def main() -> None:
    """Start the service several times and record the medians."""
    with tempfile.TemporaryDirectory(prefix="zo-start-") as folder:
        starts = [start_once(Path(folder) / str(run)) for run in range(RUNS)]
    seconds = [found["ready_seconds"] for found in starts]
    memory = [found["resident_bytes"] for found in starts]
    path = write_result("service_start", {"starts": starts})
    record_headlines(
        path,
        {
            "service.ready_seconds": (round(statistics.median(seconds), 3), "s"),
            "service.resident_bytes": (int(statistics.median(memory)), "bytes"),
        },
    )
    print(path.read_text())


def start_once(data: Path) -> dict[str, float]:
    """Return the seconds to readiness and the resident bytes of one start."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "cloud_service.cli", "serve", "--data", str(data), "--port", "0", "--no-auth"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            url = next(json.loads(line)["url"] for line in process.stdout if '"listening"' in line)
            while httpx.get(f"{url}/readyz").status_code != httpx.codes.OK:
                if time.perf_counter() - started > LONGEST_SECONDS:
                    raise TimeoutError(f"{url} is not ready after {LONGEST_SECONDS} s")
                time.sleep(0.01)
            seconds = time.perf_counter() - started
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert "libtorch" not in maps, "the web process has loaded torch"
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.terminate()
    return {"ready_seconds": round(seconds, 3), "resident_bytes": pages * 4096}


if __name__ == "__main__":
    main()
