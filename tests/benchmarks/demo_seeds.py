"""Repeats the demo with several seeds: another text, another pretraining, other messages, other perturbations.

One run could be luck. Writes ``results/demo_seeds.json`` with each seed's figures and the mean change. Takes about
three minutes a seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from recording import write_result

DEMO = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "run_demo.py"
SEEDS = (0, 1, 2)


def main() -> None:
    """Run every seed and keep what it came to."""
    runs = {seed: run(seed) for seed in SEEDS}
    changes = [figures["accuracy_after"] - figures["accuracy_before"] for figures in runs.values()]
    path = write_result(
        "demo_seeds",
        {
            "runs": {str(seed): figures for seed, figures in runs.items()},
            "accuracy_change_mean": statistics.fmean(changes),
            "accuracy_change_min": min(changes),
            "accuracy_change_std": statistics.stdev(changes),
        },
    )
    print(path.read_text())


def run(seed: int) -> dict[str, float]:
    """Run the demo once in a folder of its own and return its figures."""
    with tempfile.TemporaryDirectory(prefix="zo-demo-") as folder:
        output = Path(folder) / "out"
        subprocess.run([sys.executable, str(DEMO), "--seed", str(seed), "--output", str(output)], check=True)
        figures: dict[str, float] = json.loads((output / "result.json").read_text())
        return figures


if __name__ == "__main__":
    main()
