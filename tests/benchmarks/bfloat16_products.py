"""Products in bfloat16 with the sensitive values beside them: whether perturbations survive, and what a step takes.

    ZO_DATA_DIR=… python tests/benchmarks/bfloat16_products.py --bundle LAYOUT --home FOLDER [--directions 8]

One process holds the bundle twice, with products in float32 and in bfloat16. Along the same directions, on the same
batches of SST-2, both measure g = (L(θ+εz) − L(θ−εz)) / 2ε in turn, for several ε. What counts is the rms difference of
their g over the rms of g: its square is the share of variance that rounding adds to an estimate which, of one direction
among thousands, is nearly all variance already. Writes ``results/bfloat16_products.json`` and the headlines
``cpu.bfloat16_products.step_over_float32`` and ``cpu.bfloat16_products.gradient_error``, at the ε where it is least.
``--home`` keeps compiled kernels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import torch  # noqa: E402
from first_order import open_bundle  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from device_client.model.backends.choose import BackendOptions  # noqa: E402
from device_client.model.backends.names import Products  # noqa: E402
from device_client.model.loader import load_model  # noqa: E402
from device_client.tasks.task_data import DataOptions, load_task_data  # noqa: E402
from device_client.tuning.batches import BatchIndices  # noqa: E402
from device_client.tuning.goals import LossGoal  # noqa: E402
from device_client.tuning.model_problem import ModelProblem  # noqa: E402
from device_client.tuning.spsa import estimate  # noqa: E402
from shared.bundle.read import Bundle  # noqa: E402
from shared.model.tokenizer import BundleTokenizer  # noqa: E402

DATA = Path(os.environ.get("ZO_DATA_DIR", HERE.parents[2] / "shared" / "data")).resolve()
EPSILONS = (1e-3, 2e-3, 4e-3)
BATCH = 16
KEPT_DECODED_BYTES = 4 << 30


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="image layout with one bundle")
    parser.add_argument("--home", type=Path, required=True, help="keeps kernels")
    parser.add_argument("--directions", type=int, default=8)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle, None)
    problems: dict[Products, ModelProblem[Any]] = {
        "library": problem_of(bundle, given.home, "library"),
        "bfloat16": problem_of(bundle, given.home, "bfloat16"),
    }
    theta = load_model(bundle, device="cpu").initial_theta()
    found = [compare(problems, theta, epsilon, given.directions) for epsilon in EPSILONS]
    path = write_result(
        "bfloat16_products",
        {"rows": BATCH, "directions": given.directions, "threads": torch.get_num_threads(), "epsilons": found},
    )
    step = statistics.median(ratio for each in found for ratio in each["step_over_float32"])
    best = min(found, key=lambda each: each["gradient_error"])
    record_headlines(
        path,
        {
            "cpu.bfloat16_products.step_over_float32": (round(step, 3), "x"),
            "cpu.bfloat16_products.gradient_error": (best["gradient_error"], f"of rms g, ε = {best['epsilon']:g}"),
        },
    )
    for each in found:
        print(each)


def problem_of(bundle: Bundle, home: Path, products: Products) -> ModelProblem[Any]:
    """Return SST-2 on the bundle, with products made so."""
    model = load_model(bundle, device="cpu", backend=BackendOptions("native", home / "kernels", print, products))
    model.keep_decoded(KEPT_DECODED_BYTES)
    options = DataOptions(task="SST-2", data_dir=DATA / "tasks", train_rows=300, validation_rows=20, test_rows=20)
    data = load_task_data(options, BundleTokenizer.from_bundle(bundle), str(bundle.config.architecture["model_type"]))
    indices = BatchIndices(len(data.training), BATCH, 0)
    return ModelProblem(model, data.training, data.validation, LossGoal(model, "candidates"), indices, BATCH)


def compare(
    problems: dict[Products, ModelProblem[Any]], theta: torch.Tensor, epsilon: float, directions: int
) -> dict[str, Any]:
    """Return how far the two g lie apart at one ε, and what each step took."""
    gradients: dict[Products, list[float]] = {products: [] for products in problems}
    seconds: dict[Products, list[float]] = {products: [] for products in problems}
    for number in range(-1, directions):  # the first is not counted: weights are decoded
        z = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(max(number, 0)))
        for products, problem in problems.items():
            begun = time.perf_counter()
            (measured,) = estimate(problem.losses, theta, [z], epsilon, problem.batch(max(number, 0)))
            if number >= 0:
                seconds[products].append(time.perf_counter() - begun)
                gradients[products].append(measured.projected_gradient)
    exact, rounded = (torch.tensor(gradients[products]) for products in ("library", "bfloat16"))
    return {
        "epsilon": epsilon,
        "rms_gradient": round(float(exact.square().mean().sqrt()), 3),
        "gradient_error": round(float((rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()), 3),
        "step_over_float32": [
            round(two / one, 3) for one, two in zip(seconds["library"], seconds["bfloat16"], strict=True)
        ],
        "float32_step_seconds": round(statistics.median(seconds["library"]), 2),
    }


if __name__ == "__main__":
    main()
