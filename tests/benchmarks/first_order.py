"""First order on the same values: its memory against zeroth order's and against its plan, and the time of a step.

    python tests/benchmarks/first_order.py --bundle LAYOUT --home FOLDER [--bundle-name NAME]

Memory: a fresh process for each case imports what ``zo-device tune`` imports, loads the bundle, makes two steps with
the run's own engine and reads its high-water mark; no decoded weight is kept, so that only the steps differ. Cases:
the bundle at 16 × 32, 4 × 128 and 16 × 128 tokens, and two blocks in the shapes of Llama-2-7B at 1 × 512. Time: in one
process, with decoded weights kept as within 8 GiB, a step and two bare forward passes of transformers' own network of
that architecture take turns. Writes ``results/first_order.json`` and the headlines ``tune.first_order_peak_over_zo``
(at 16 × 32), ``plan.first_order_error_percent`` (the worst) and ``tune.seconds_per_step.first_order`` (over the two
bare passes). ``--home`` keeps compiled kernels and the 7B shapes between calls.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

import torch  # noqa: E402
from peers.bare_forward import two_bare_forwards  # noqa: E402
from peers.labelled_batch import random_batch  # noqa: E402
from peers.seven_b_shapes import plain_model, seven_b_config, shaped_bundle  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from device_client.model.backends.choose import BackendOptions  # noqa: E402
from device_client.model.loader import load_model  # noqa: E402
from device_client.model.sparse_model import SparseModel  # noqa: E402
from device_client.planning.memory_plan import plan_memory  # noqa: E402
from device_client.planning.methods import tuned_part  # noqa: E402
from device_client.planning.tuned_blocks import ALL_BLOCKS  # noqa: E402
from device_client.planning.workload import Workload  # noqa: E402
from device_client.tuning.batches import BatchIndices  # noqa: E402
from device_client.tuning.engines import make_engine  # noqa: E402
from device_client.tuning.goals import LossGoal  # noqa: E402
from device_client.tuning.model_problem import ModelProblem  # noqa: E402
from device_client.tuning.settings import Gradient, TuneSettings  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402
from shared.bundle.read import Bundle, read_bundle  # noqa: E402
from shared.tasks.examples import Example  # noqa: E402

SHAPES = ((16, 32), (4, 128), (16, 128))
SEVEN_B_SHAPE = (1, 512)
KEPT_DECODED_BYTES = 7 << 30
STEPS = 2
BOTH: tuple[Gradient, Gradient] = ("zeroth-order", "first-order")


@dataclass(frozen=True, slots=True)
class Case:
    """What one process does."""

    gradient: Gradient
    rows: int
    columns: int

    @property
    def workload(self) -> Workload:
        """What is planned: both signs side by side, or a pass with a gradient."""
        if self.gradient == "first-order":
            return Workload(self.rows, self.columns, queries=0, is_differentiated=True)
        return Workload(self.rows, self.columns, points=2)


def steps_of(model: SparseModel, case: Case, kernels: BackendOptions) -> Callable[[], float]:
    """Return what makes the next step of a run on made-up rows, and returns its loss."""
    prompt = tuple(3 + position % 200 for position in range(case.columns - 1))
    examples = [Example((3 + first, *prompt), ((5,), (6,)), 0, "made up") for first in range(case.rows)]
    indices = BatchIndices(case.rows, case.rows, 0)
    problem = ModelProblem(
        model, examples, examples, LossGoal(model, "candidates"), indices, case.rows, case.workload.points
    )
    settings = TuneSettings(gradient=case.gradient, steps=1000, batch_size=case.rows, lr=1e-6)
    part = tuned_part(model.config, "sparse", ALL_BLOCKS)
    engine = make_engine(settings, model, model, part, problem, "candidates", kernels, lambda: None).engine
    theta, done = model.initial_theta(), 0

    def step() -> float:
        nonlocal theta, done
        record = engine.measure(done, theta)
        theta = engine.move(theta, record)
        done += 1
        return record.clean_loss

    return step


def measured(case: Case, root: str, digest: str, kernels: str) -> dict[str, int]:
    """Make the steps in this process; return what it used."""
    backend = BackendOptions("native", Path(kernels))
    model = load_model(read_bundle(ImageLayout(Path(root)), digest), device="cpu", backend=backend)
    loaded = model.memory.peak_bytes
    step = steps_of(model, case, backend)
    for _ in range(STEPS):
        step()
    return {"loading_peak_bytes": loaded, "peak_bytes": model.memory.peak_bytes}


def compare(case: Case, bundle: Bundle, root: Path, kernels: Path) -> dict[str, Any]:
    """Return the plan of a case beside what a process of its own used."""
    planned = plan_memory(bundle.config, case.workload, device_type="cpu", backend="native")
    words = ["--measure", json.dumps(asdict(case)), str(root), bundle.digest, str(kernels)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, int] = json.loads(done.stdout)
    return {
        **asdict(case),
        **found,
        "planned_bytes": planned.total_bytes,
        "planned_parts": planned.parts,
        "error_percent": 100 * (planned.total_bytes / found["peak_bytes"] - 1),
    }


def step_over_two_bare_forwards(bundle: Bundle, kernels: Path, rounds: int) -> dict[str, float]:
    """Time steps and pairs of bare forward passes in turn."""
    backend = BackendOptions("native", kernels)
    model = load_model(bundle, device="cpu", backend=backend)
    model.keep_decoded(KEPT_DECODED_BYTES)
    rows, columns = SHAPES[0]
    architecture = bundle.config.architecture
    network = plain_model(architecture, dtype=torch.float32, device="cpu")
    tokens = random_batch(rows, columns, int(architecture["vocab_size"]), device="cpu", seed=0).tokens
    works: dict[str, Callable[[], object]] = {
        "two_bare_forwards": lambda: two_bare_forwards(network, tokens),
        **{gradient: steps_of(model, Case(gradient, rows, columns), backend) for gradient in BOTH},
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:  # the first decodes and keeps weights
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Measure every case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="image layout")
    parser.add_argument("--bundle-name", help="name:tag in it, where it holds several")
    parser.add_argument("--home", type=Path, required=True, help="keeps kernels and shapes")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timed steps (5)")
    parser.add_argument("--dry-run", action="store_true", help="print the figures and write nothing")
    arguments = parser.parse_args()
    bundle, kernels = open_bundle(arguments.bundle, arguments.bundle_name), arguments.home / "kernels"
    seven_b_root = arguments.home / "seven-b"
    seven_b = shaped_bundle(seven_b_root, seven_b_config(blocks=2))
    cases = [
        compare(Case(gradient, rows, columns), bundle, arguments.bundle, kernels)
        for rows, columns in SHAPES
        for gradient in BOTH
    ]
    cases.append(compare(Case("first-order", *SEVEN_B_SHAPE), seven_b, seven_b_root, kernels))
    seconds = step_over_two_bare_forwards(bundle, kernels, arguments.rounds)
    figures = headlines(cases, seconds)
    print(json.dumps({"figures": {key: value for key, (value, _) in figures.items()}, "cases": cases}, indent=1))
    if not arguments.dry_run:
        path = write_result("first_order", {"cases": cases, "seconds": seconds})
        record_headlines(path, figures)


def headlines(cases: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, tuple[float, str]]:
    """Return the headline figures with their units."""
    zeroth, first = (
        next(case["peak_bytes"] for case in cases if (case["gradient"], case["rows"], case["columns"]) == wanted)
        for wanted in ((gradient, *SHAPES[0]) for gradient in BOTH)
    )
    worst = max(abs(case["error_percent"]) for case in cases if case["gradient"] == "first-order")
    over = seconds["first-order"] / seconds["two_bare_forwards"]
    return {
        "tune.first_order_peak_over_zo": (round(first / zeroth, 3), "ratio"),
        "plan.first_order_error_percent": (round(worst, 2), "%"),
        "tune.seconds_per_step.first_order": (round(over, 3), "two bare forward passes"),
    }


def open_bundle(folder: Path, name: str | None) -> Bundle:
    """Return the bundle of that name, or the only one."""
    layout = ImageLayout(folder)
    found = {key: entry for key, entry in layout.references().items() if not key.endswith(".sig")}
    (manifest,) = [found[name]] if name else found.values()
    return read_bundle(layout, manifest.digest)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(Case(**json.loads(sys.argv[2])), *sys.argv[3:])))
    else:
        main()
