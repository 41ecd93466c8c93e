"""The ways to tune SmolLM2's bundle beside each other, after the same numbers of forward passes.

    python tests/benchmarks/tuning_methods.py --home DIR --bundle REF [--task SST-2] [--passes 400 1600 6400]
                                              [--seeds 3] [--method zo zo_upper first_order] [--finished]

    zo            all sensitive values, two forward passes a step and now and then a third
    zo_upper      those of the last third of the blocks
    first_order   the exact gradient of all of them; one step counts as three forward passes

Each number of passes is a run of its own, planned for it, with every default of ``zo-device tune``; 1,000 rows to
train on, 100 to choose the best values by, 300 to judge by. Seeds are paired. First order's loss after 240 passes is
the mark for zeroth order: how many passes its longest runs need until their validation loss is as low.

Every run is kept in DIR, and a run that was interrupted continues: call again after any interruption, with more seeds
or passes. ``--finished`` makes no run and records those of the asked ones that are finished. Writes
``results/tuning_methods.json`` and the headlines ``tune.<task>.…`` of what was run, and draws
``results/tuning_<task>.svg``: validation loss against forward passes and against seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from recording import RESULTS, record_headlines  # noqa: E402
from runtime.result_file import add_part  # noqa: E402
from runtime.tuning_curves import draw_tuning_curves  # noqa: E402
from tuning_runs import Workbench, measured_steps, passes_of  # noqa: E402

METHODS = {"zo": [], "zo_upper": ["--blocks", "upper:10"], "first_order": ["--gradient", "first-order"]}
FIRST_ORDER_PASSES = 3
MARK_PASSES = 240


def main() -> int:
    """Run what is missing, then record all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--task", default="SST-2")
    parser.add_argument("--passes", type=int, nargs="+", default=[400, 1600, 6400])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--finished", action="store_true", help="record what is finished, and make no run")
    given = parser.parse_args()
    bench = Workbench(given.home, given.bundle)
    asked = product(sorted(given.passes), range(given.seeds), given.method)
    wanted = [(method, passes, seed) for passes, seed, method in asked]
    marking = [("first_order", MARK_PASSES, seed) for seed in range(given.seeds)]
    runs, marks = (
        [
            measured(bench, method, given.task, passes, seed)
            for method, passes, seed in names
            if not given.finished or bench.is_finished(name_of(given.task, method, passes, seed))
        ]
        for names in (wanted, marking)
    )
    short = given.task.lower().replace("-", "")
    found = {"task": given.task, "seeds": given.seeds, "dtype": "float32", "runs": [*runs, *marks]}
    path = add_part(RESULTS, "tuning_methods", short, found)
    record_headlines(path, {f"tune.{short}.{key}": value for key, value in headlines(runs, marks)})
    for picture in draw_tuning_curves(path):
        print(picture)
    return 0


def name_of(task: str, method: str, passes: int, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{task}-{method}-{passes}-{seed}"


def measured(bench: Workbench, method: str, task: str, passes: int, seed: int) -> dict[str, Any]:
    """Return one run's figures, and its validation losses against passes and seconds."""
    is_first_order = method == "first_order"
    steps = passes // FIRST_ORDER_PASSES if is_first_order else measured_steps(passes)
    name = name_of(task, method, passes, seed)
    run = bench.run(name, task, steps, seed, METHODS[method])
    if run is None:
        return {"method": method, "passes": passes, "seed": seed, "diverged": True}
    result, seconds = run["result"], run["resources"]["seconds_per_step"]
    curve = [
        {
            "passes": FIRST_ORDER_PASSES * line["steps_done"] if is_first_order else passes_of(line["steps_done"]),
            "seconds": line["steps_done"] * seconds,
            "loss": line["loss"],
            "accuracy": line["accuracy"],
        }
        for line in bench.validations(name)
    ]
    print(method, passes, seed, json.dumps(result["test"]), file=sys.stderr, flush=True)
    return {
        "method": method, "passes": passes, "seed": seed, "seconds_per_step": seconds, "test": result["test"],
        "validation": result["validation"], "curve": curve,
    }  # fmt: skip


def headlines(runs: list[dict[str, Any]], marks: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Yield keys, and means over the seeds with their unit."""
    finished = [run for run in runs if "test" in run]
    for method, passes in sorted({(run["method"], run["passes"]) for run in finished}):
        tests = [run["test"] for run in finished if (run["method"], run["passes"]) == (method, passes)]
        about = f"after {passes} passes, {len(tests)} seeds"
        yield f"accuracy.{method}.{passes}", (mean(tests, "best", "accuracy"), f"share {about}")
        yield f"loss.{method}.{passes}", (mean(tests, "best", "loss"), f"nats {about}")
    tests = [run["test"] for run in finished]
    for baseline in ("calibrated_zero_shot", "in_context"):
        yield f"accuracy.{baseline}", (mean(tests, baseline, "accuracy"), "share")
        yield f"loss.{baseline}", (mean(tests, baseline, "loss"), "nats")
    needed = [passes_to(mark["curve"][-1]["loss"], runs, mark["seed"]) for mark in marks if "curve" in mark]
    if needed and None not in needed:
        ratio = statistics.fmean(passes for passes in needed if passes) / MARK_PASSES
        yield f"passes_to_loss_of_first_order_{MARK_PASSES}", (ratio, "times as many")


def mean(tests: list[dict[str, Any]], stage: str, figure: str) -> float:
    """Return the mean of a figure over test results."""
    return statistics.fmean(test[stage][figure] for test in tests)


def passes_to(loss: float, runs: list[dict[str, Any]], seed: int) -> int | None:
    """Return the fewest passes after which a run of zeroth order validated as low a loss; None where none did."""
    curves = [run["curve"] for run in runs if run["method"] == "zo" and run["seed"] == seed and "curve" in run]
    reached = [point["passes"] for curve in curves for point in curve if point["loss"] <= loss]
    return min(reached, default=None)


if __name__ == "__main__":
    sys.exit(main())
