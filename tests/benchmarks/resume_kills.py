"""Kills real runs of ``zo-device tune`` at random steps and compares what each resumed run ends with, bit for bit.

For each way to tune: one uninterrupted run; two runs killed once by SIGKILL at a step drawn by seed and started again;
one run killed five times; one run stopped again and again by ``--time-budget``. Identical means: journal, both values
files and result.json have the same bytes.

    python tests/benchmarks/resume_kills.py [--bundle DIR] [--steps 120] [--way NAME …]

Without ``--bundle`` a tiny random bundle and generated rows are used. Writes results/resume_kills.json and, where all
ways were tried, the headlines ``tune.kills_identical`` and ``tune.kills``. A quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from recording import record_headlines, write_result  # noqa: E402
from tiny_bundle import make_tiny_bundle  # noqa: E402

from device_client.tuning.journal import read_journal  # noqa: E402
from shared.errors import IntegrityError  # noqa: E402
from shared.perturbation import random_generator  # noqa: E402

WAYS: dict[str, tuple[str, ...]] = {
    "sparse": (),
    "upper blocks": ("--blocks", "upper:1"),
    "one-sided": ("--directions", "one-sided", "--queries", "3"),
    "first order": ("--gradient", "first-order"),
    "first order of upper blocks": ("--gradient", "first-order", "--blocks", "upper:1"),
    "lora": ("--method", "lora"),
    "prefix": ("--method", "prefix"),
    "accuracy": ("--objective", "accuracy"),
}
SINGLE_KILLS, REPEATED_KILLS = 2, 5
COMPARED = ("journal.bin", "last.safetensors", "best.safetensors", "result.json")
PAUSE = "0.4s"
ZO_DEVICE = Path(sys.executable).with_name("zo-device")


def main() -> int:
    """Try every way, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="image layout with one bundle")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    ways = {}
    for number, way in enumerate(given.way):
        with tempfile.TemporaryDirectory() as folder:
            ways[way] = measure(Path(folder), given.bundle, given.steps, given.seed + number, WAYS[way])
        print(way, json.dumps(ways[way]), file=sys.stderr, flush=True)
    is_identical = all(found["is_identical"] for found in ways.values())
    kills = sum(len(run["killed_after_steps"]) for found in ways.values() for run in found["runs"])
    bundle = "tiny random" if given.bundle is None else given.bundle.name
    if ways.keys() == WAYS.keys():
        path = write_result("resume_kills", {"steps": given.steps, "bundle": bundle, "ways": ways})
        record_headlines(path, {"tune.kills_identical": (is_identical, "bool"), "tune.kills": (kills, "SIGKILLs")})
    return 0 if is_identical else 1


def measure(home: Path, bundle: Path | None, steps: int, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Return where the runs of one way were killed, and whether they ended alike."""
    if bundle is None:
        make_tiny_bundle(home / "bundles")
    else:
        (home / "bundles").symlink_to(bundle.resolve())
    rows = home / "rows.jsonl"
    rows.write_text("".join(generated_rows()))
    command = [
        str(ZO_DEVICE), "tune", "--data", str(rows), "--steps", str(steps), "--batch", "8", "--validate-every", "20",
        "--device", "cpu", "--quiet", *options, "--output",
    ]  # fmt: skip
    environment = os.environ | {"ZO_DEVICE_HOME": str(home)}
    # Not in the first or last steps, where there would be little to lose or nothing left to do.
    draw = random_generator(seed)
    plans = [[int(step)] for step in draw.choice(range(5, steps - 10), SINGLE_KILLS, replace=False)]
    plans.append(sorted(int(step) for step in draw.choice(range(5, steps - 10), REPEATED_KILLS, replace=False)))
    whole = home / "uninterrupted"
    subprocess.run([*command, str(whole)], env=environment, check=True)
    expected = digests(whole)
    runs = [
        run_with_kills([*command, str(home / f"run-{index}")], environment, home / f"run-{index}", plan, expected)
        for index, plan in enumerate(plans)
    ]
    paused = run_with_pauses([*command, str(home / "paused")], environment, home / "paused", expected)
    return {
        "seed": seed,
        "options": list(options),
        "uninterrupted": expected,
        "runs": runs,
        "paused": paused,
        "is_identical": all(run["is_identical"] for run in [*runs, paused]),
    }


def generated_rows() -> list[str]:
    words = [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("poor", "no")]
    return [
        json.dumps({"text": f"{word} number {i}", "label": label}) + "\n" for i in range(12) for word, label in words
    ]


def run_with_kills(
    command: list[str], environment: dict[str, str], folder: Path, kill_steps: list[int], expected: dict[str, str]
) -> dict[str, Any]:
    killed_after = [kill_at(command, environment, folder, step) for step in kill_steps]
    subprocess.run(command, env=environment, check=True)
    return {"killed_after_steps": killed_after} | compare(folder, expected)


def run_with_pauses(
    command: list[str], environment: dict[str, str], folder: Path, expected: dict[str, str]
) -> dict[str, Any]:
    """Repeat the command with a short time budget until the run is finished."""
    paused_after: list[int] = []
    while True:
        subprocess.run([*command, "--time-budget", PAUSE], env=environment, check=True)
        if json.loads((folder / "result.json").read_text())["stopped_by"] != "time budget":
            break
        paused_after.append(steps_on_record(folder))
        if paused_after[-2:-1] == paused_after[-1:]:
            raise RuntimeError(f"no step was made within {PAUSE}")
    return {"paused_after_steps": paused_after} | compare(folder, expected)


def compare(folder: Path, expected: dict[str, str]) -> dict[str, object]:
    found = digests(folder)
    differing = [name for name in COMPARED if found[name] != expected[name]]
    return {"differing_files": differing, "is_identical": not differing}


def kill_at(command: list[str], environment: dict[str, str], folder: Path, step: int) -> int:
    """Start the run, SIGKILL it once its journal holds ``step`` records, and return how many it then holds."""
    process = subprocess.Popen(command, env=environment)
    while steps_on_record(folder) < step:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before step {step}")
        time.sleep(0.002)
    process.kill()
    if process.wait() != -9:
        raise RuntimeError(f"the run ended with {process.returncode} before it was killed")
    return steps_on_record(folder)


def steps_on_record(folder: Path) -> int:
    try:
        return len(read_journal(folder / "journal.bin")[1])
    except (FileNotFoundError, IntegrityError):
        return 0


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in COMPARED}


if __name__ == "__main__":
    sys.exit(main())
