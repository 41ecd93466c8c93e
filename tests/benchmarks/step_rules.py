"""Judges the measured step against a grid of chosen lengths at equal forward passes, by ``zo-device tune`` itself.

    python tests/benchmarks/step_rules.py --home DIR --bundle REF [--task SST-2 …] [--passes 400] [--seeds 3]

Per task and seed: ``--step auto`` and five lengths, each with as many steps as the passes allow (a measured step spends
one pass more now and then), on the same rows with the same seed. What counts is the accuracy on the test rows of the
values that the validation rows chose. The best of the grid is the length whose mean over the seeds is highest, chosen
on the very rows that it is judged by, which favours the grid.

Every run is kept in ``DIR/step-rules``, and a run that was interrupted continues: call again after any interruption.
``household`` is the demo's own task; all others are read from ``--data-dir``. Writes results/step_rules.json and, per
task, the headline ``tune.auto_over_best_grid.<task>`` in accuracy points.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from recording import record_headlines, write_result  # noqa: E402

from device_client.tuning.measured_step import MEASURE_EVERY, WARMUP_STEPS  # noqa: E402

ZO_DEVICE = Path(sys.executable).with_name("zo-device")
HOUSEHOLD = HERE.parents[1] / "deploy" / "demo" / "household"
GRID = (0.1, 0.3, 0.9, 2.7, 8.1)
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Trials:
    """What is the same for every run.

    Attributes:
        home: Of the device program; holds the bundle.
        bundle: Its reference.
        data_dir: Folder of the named tasks' folders.
        passes: Forward passes of each run, at most.
        batch: Rows per step.
        train_rows: Rows trained on.
        test_rows: Rows judged by.
    """

    home: Path
    bundle: str
    data_dir: Path
    passes: int
    batch: int
    train_rows: int
    test_rows: int

    def run(self, task: str, step: str, seed: int) -> dict[str, Any]:
        """Tune, or continue, or read what is finished; return its result and resources."""
        steps = measured_steps(self.passes) if step == AUTO else self.passes // 2
        folder = self.home / "step-rules" / f"{task}-{self.passes}-{step}-{seed}"
        folder.parent.mkdir(exist_ok=True)
        words = ["tune", self.bundle, *self._rows(task), "--steps", str(steps), "--step", step, "--seed", str(seed)]
        words += ["--batch", str(self.batch), "--validate-every", str(max(1, steps // 8)), "--output", str(folder)]
        done = subprocess.run(
            [ZO_DEVICE, *words, "--device", "cpu", "--json"], stdout=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"ZO_DEVICE_HOME": str(self.home)},
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        if done.returncode == 10:  # a length that diverges is an outcome, and leaves the bundle's own values
            return {"diverged": True}
        if done.returncode != 0:
            raise RuntimeError(f"zo-device {' '.join(words)} ended with {done.returncode}: {done.stdout}")
        return {"result": found["result"], "resources": found["resources"]}

    def _rows(self, task: str) -> list[str]:
        if task == "household":
            files = [("--data", "train"), ("--validation", "validation"), ("--test", "test")]
            words = [word for option, name in files for word in (option, str(HOUSEHOLD / f"{name}.jsonl"))]
            return [*words, "--template", "{text} Ask {label}", "--label-words", "Emma=Emma,Lucy=Lucy"]
        return [
            "--task", task, "--data-dir", str(self.data_dir), "--train-rows", str(self.train_rows),
            "--test-rows", str(self.test_rows), "--validation-rows", "100",
        ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task", action="append", help="may be given again (default: SST-2, CB, COPA and household)")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("ZO_DATA_DIR", ".")) / "tasks")
    parser.add_argument("--passes", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--train-rows", type=int, default=1000)
    parser.add_argument("--test-rows", type=int, default=300)
    given = parser.parse_args()
    trials = Trials(
        given.home, given.bundle, given.data_dir, given.passes, given.batch, given.train_rows, given.test_rows
    )
    tasks = given.task or ["SST-2", "CB", "COPA", "household"]
    found = {task: judge(trials, task, given.seeds) for task in tasks}
    path = write_result("step_rules", {"passes": given.passes, "seeds": given.seeds, "tasks": found})
    record_headlines(
        path,
        {
            f"tune.auto_over_best_grid.{task.lower().replace('-', '')}": (
                judged["auto_over_best_grid"],
                f"accuracy points after {given.passes} passes, {given.seeds} seeds",
            )
            for task, judged in found.items()
        },
    )
    return 0


def judge(trials: Trials, task: str, seeds: int) -> dict[str, Any]:
    """Return all runs of a task, the means of each step, and what auto has over the best of the grid."""
    steps = [AUTO, *(f"{length:g}" for length in GRID)]
    runs = {step: [trials.run(task, step, seed) for seed in range(seeds)] for step in steps}
    bundle = next(run["result"]["test"]["bundle"] for run in runs[AUTO] if "result" in run)
    means = {step: summary(found, bundle) for step, found in runs.items()}
    best = max(steps[1:], key=lambda step: means[step]["accuracy"])
    points = 100 * (means[AUTO]["accuracy"] - means[best]["accuracy"])
    print(task, f"auto over {best}: {points:+.1f} points", json.dumps(means), file=sys.stderr, flush=True)
    return {"auto_over_best_grid": points, "best_of_grid": best, "bundle": bundle, "means": means, "runs": runs}


def summary(runs: list[dict[str, Any]], bundle: dict[str, float]) -> dict[str, float]:
    """Return mean accuracy and loss on the test rows, and how many runs diverged."""
    tests = [bundle if "diverged" in run else run["result"]["test"]["best"] for run in runs]
    return {
        "accuracy": statistics.fmean(test["accuracy"] for test in tests),
        "loss": statistics.fmean(test["loss"] for test in tests),
        "diverged": sum("diverged" in run for run in runs),
    }


def measured_steps(passes: int) -> int:
    """Return the most steps of ``--step auto`` that need no more passes than these."""
    steps = passes // 2
    while 2 * steps + sum(step < WARMUP_STEPS or step % MEASURE_EVERY == 0 for step in range(steps)) > passes:
        steps -= 1
    return steps


if __name__ == "__main__":
    sys.exit(main())
