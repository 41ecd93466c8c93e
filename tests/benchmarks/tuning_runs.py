"""Runs of ``zo-device tune`` on a prepared bundle, each in a folder of its own, for benchmarks that compare them.

A finished run is read, not repeated, and an interrupted one continues: a benchmark may be called again at any time.
``household`` is the demo's own task; all others are read from the folder of named tasks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_client.tuning.measured_step import MEASURE_EVERY, WARMUP_STEPS

ZO_DEVICE = Path(sys.executable).with_name("zo-device")
HOUSEHOLD = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "household"
DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
DIVERGED = 10
"""The exit code of a run that diverged: an outcome, which leaves the bundle's own values."""

_VALIDATIONS = 16


@dataclass(frozen=True, slots=True)
class Workbench:
    """What is the same for every run.

    Attributes:
        home: Of the device program; holds the bundle, and the runs.
        bundle: Its reference.
        batch: Rows per step.
        train_rows: Rows trained on.
        test_rows: Rows judged by.
        validation_rows: Rows that choose the best values.
    """

    home: Path
    bundle: str
    batch: int = 16
    train_rows: int = 1000
    test_rows: int = 300
    validation_rows: int = 100

    def run(self, name: str, task: str, steps: int, seed: int, options: Sequence[str]) -> dict[str, Any] | None:
        """Tune, or continue, or read what is finished; return its result and resources, or None where it diverged.

        Args:
            name: Of its folder.
            task: Whose rows.
            steps: Steps of the whole run.
            seed: Of rows, batches and perturbations.
            options: Further options.

        Raises:
            RuntimeError: The program failed otherwise.
        """
        words = ["tune", self.bundle, *self._rows(task), "--steps", str(steps), "--seed", str(seed), *options]
        words += ["--batch", str(self.batch), "--validate-every", str(max(1, steps // _VALIDATIONS))]
        words += ["--output", str(self.folder(name)), "--device", "cpu", "--json"]
        self.folder(name).parent.mkdir(exist_ok=True)
        done = subprocess.run(
            [ZO_DEVICE, *words], stdout=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"ZO_DEVICE_HOME": str(self.home)},
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        if done.returncode == DIVERGED:
            return None
        if done.returncode != 0:
            raise RuntimeError(f"zo-device {' '.join(words)} ended with {done.returncode}: {done.stdout}")
        return {"result": found["result"], "resources": found["resources"]}

    def folder(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.home / "compared-runs" / name

    def is_finished(self, name: str) -> bool:
        """Return whether a run has come to its end."""
        return (self.folder(name) / "result.json").exists()

    def validations(self, name: str) -> list[dict[str, Any]]:
        """Return a run's validations, in order: steps done, loss, accuracy."""
        lines = (self.folder(name) / "metrics.jsonl").read_text().splitlines()
        return [line for line in map(json.loads, lines) if "loss" in line and "steps_done" in line]

    def _rows(self, task: str) -> list[str]:
        if task == "household":
            files = [("--data", "train"), ("--validation", "validation"), ("--test", "test")]
            words = [word for option, split in files for word in (option, str(HOUSEHOLD / f"{split}.jsonl"))]
            return [*words, "--template", "{text} Ask {label}", "--label-words", "Emma=Emma,Lucy=Lucy"]
        return [
            "--task", task, "--data-dir", str(DATA / "tasks"), "--train-rows", str(self.train_rows),
            "--test-rows", str(self.test_rows), "--validation-rows", str(self.validation_rows),
        ]  # fmt: skip


def measured_steps(passes: int) -> int:
    """Return the most steps of a measured step length that need no more passes than these."""
    steps = passes // 2
    while passes_of(steps) > passes:
        steps -= 1
    return steps


def passes_of(steps: int) -> int:
    """Return the forward passes of the first steps of a run whose step is measured."""
    return 2 * steps + sum(step < WARMUP_STEPS or step % MEASURE_EVERY == 0 for step in range(steps))
