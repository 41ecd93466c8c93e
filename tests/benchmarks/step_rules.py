"""Judges the measured step against a grid of chosen lengths at equal forward passes, by ``zo-device tune`` itself.

    python tests/benchmarks/step_rules.py --home DIR --bundle REF [--task SST-2 …] [--passes 400] [--seeds 3]

Per task and seed: ``--step auto`` and five lengths, each with as many steps as the passes allow (a measured step spends
one pass more now and then), on the same rows with the same seed. What counts is the accuracy on the test rows of the
values that the validation rows chose. The best of the grid is the length whose mean over the seeds is highest, chosen
on the very rows that it is judged by, which favours the grid.

Every run is kept in DIR, and a run that was interrupted continues: call again after any interruption. Writes
results/step_rules.json and, per task, the headline ``tune.auto_over_best_grid.<task>`` in accuracy points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from recording import record_headlines, write_result  # noqa: E402
from tuning_runs import Workbench, measured_steps  # noqa: E402

GRID = (0.2, 0.4, 0.8, 1.6, 3.2)
AUTO = "auto"


def main() -> int:
    """Judge each task and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task", action="append", help="may be given again (default: SST-2, CB, COPA and household)")
    parser.add_argument("--passes", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    bench = Workbench(given.home, given.bundle, given.batch)
    tasks = given.task or ["SST-2", "CB", "COPA", "household"]
    found = {task: judge(bench, task, given.passes, given.seeds) for task in tasks}
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


def judge(bench: Workbench, task: str, passes: int, seeds: int) -> dict[str, Any]:
    """Return all runs of a task, the means of each step, and what auto has over the best of the grid."""
    runs = {
        step: [
            bench.run(
                f"{task}-{passes}-{step}-{seed}", task, measured_steps(passes) if step == AUTO else passes // 2, seed,
                ["--step", step],
            )
            for seed in range(seeds)
        ]
        for step in (AUTO, *(f"{length:g}" for length in GRID))
    }  # fmt: skip
    bundle = next(run["result"]["test"]["bundle"] for run in runs[AUTO] if run)
    means = {step: summary(found, bundle) for step, found in runs.items()}
    best = max((step for step in means if step != AUTO), key=lambda step: means[step]["accuracy"])
    points = 100 * (means[AUTO]["accuracy"] - means[best]["accuracy"])
    print(task, f"auto over {best}: {points:+.1f} points", json.dumps(means), file=sys.stderr, flush=True)
    return {"auto_over_best_grid": points, "best_of_grid": best, "bundle": bundle, "means": means, "runs": runs}


def summary(runs: list[dict[str, Any] | None], bundle: dict[str, float]) -> dict[str, float]:
    """Return mean accuracy and loss on the test rows, and how many runs diverged."""
    tests = [run["result"]["test"]["best"] if run else bundle for run in runs]
    return {
        "accuracy": statistics.fmean(test["accuracy"] for test in tests),
        "loss": statistics.fmean(test["loss"] for test in tests),
        "diverged": sum(run is None for run in runs),
    }


if __name__ == "__main__":
    sys.exit(main())
