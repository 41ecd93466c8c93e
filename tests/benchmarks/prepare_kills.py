"""Kills a real ``zo-cloud prepare`` at every stage boundary and at random moments; compares the digests it ends with.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/prepare_kills.py [--model stories260K-hf] [--random 6]

One uninterrupted run; for every stage, a run that is killed by SIGKILL when that stage is announced; runs that are
killed at moments drawn by seed; and one run that is killed at all of them, one after another. Each is started again
by the same command until it ends. Identical means: the same bundle digest, and every run was really killed: a process
that had ended before, or another exit status than SIGKILL's, does not count. Options after ``--`` go to the command.
Writes results/prepare_kills.json and the headline ``resume.prepare_kills_identical``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from recording import record_headlines, write_result

from shared.api import Stage
from shared.perturbation import random_generator

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
ZO_CLOUD = Path(sys.executable).with_name("zo-cloud")
BOUNDARIES = (Stage.RESOLVING, Stage.CALIBRATING, Stage.SELECTING, Stage.QUANTIZING, Stage.EVALUATING, Stage.PUBLISHING)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="picollama-sentiment")
    parser.add_argument("--random", type=int, default=6, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=406)
    parser.add_argument("options", nargs="*", help="options of zo-cloud prepare, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments)
    path = write_result("prepare_kills", result)
    record_headlines(path, {"resume.prepare_kills_identical": (result["is_identical"], "bool")})
    print(json.dumps(result, indent=1))
    return 0 if result["is_identical"] else 1


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    expected = Attempts(root / "whole", arguments).finish()
    whole_seconds = time.monotonic() - started
    moments = sorted(random_generator(arguments.seed).uniform(0.1, 0.95, arguments.random) * whole_seconds)
    runs = []
    for stage in BOUNDARIES:
        attempts = Attempts(root / f"at-{stage}", arguments)
        attempts.kill_at_stage(stage)
        runs.append({"killed": f"when {stage} began", "kills": attempts.kills, "digest": attempts.finish()})
    for number, drawn in enumerate(moments):
        attempts, moment = Attempts(root / f"random-{number}", arguments), drawn
        attempts.kill_after(moment)
        while not attempts.kills:  # it was faster than the first run, and over: once more, killed earlier
            moment *= 0.7
            attempts = Attempts(root / f"random-{number}-{moment:.1f}", arguments)
            attempts.kill_after(moment)
        runs.append({"killed": f"after {moment:.1f} s", "kills": attempts.kills, "digest": attempts.finish()})
    attempts = Attempts(root / "often", arguments)
    for stage in BOUNDARIES:
        attempts.kill_at_stage(stage)
    for moment in moments[:3]:
        attempts.kill_after(moment / 3)
    runs.append({"killed": "again and again", "kills": attempts.kills, "digest": attempts.finish()})
    return {
        "model": arguments.model, "options": arguments.options, "uninterrupted_seconds": round(whole_seconds, 1),
        "digest": expected, "runs": runs,
        "is_identical": all(run["digest"] == expected and run["kills"] for run in runs),
    }  # fmt: skip


class Attempts:
    """One preparation, started as often as it is killed."""

    def __init__(self, output: Path, arguments: argparse.Namespace) -> None:
        self.kills = 0
        self._command = [
            str(ZO_CLOUD), "prepare", str(DATA / "models" / arguments.model), "--output", str(output), "--json",
            "--calibration-text", str(DATA / "text" / "c4" / "c4-en-1000.jsonl"), "--sequences", "48",
            "--tokens", "256", "--evaluation-documents", "40", "--signing-key", str(output.parent / "key.pem"),
            *arguments.options,
        ]  # fmt: skip
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def kill_at_stage(self, stage: Stage) -> None:
        """Start, and kill as soon as progress names the stage; an attempt that is past it is killed at its end."""
        process = self._start()
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"{stage}"):
                break
        self._kill(process)

    def kill_after(self, seconds: float) -> None:
        """Start, and kill after some time."""
        process = self._start()
        assert process.stderr is not None
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._kill(process)
        drain.join()

    def finish(self) -> str:
        """Run to the end and return the bundle's digest."""
        finished = subprocess.run(self._command, env=self._environment, check=True, capture_output=True, text=True)
        return str(json.loads(finished.stdout)["digest"])

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def _kill(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        self.kills += process.wait() == -signal.SIGKILL


if __name__ == "__main__":
    raise SystemExit(main())
