"""How well ``zo-device plan`` predicts: planned against measured peak of main memory, a fresh process for each case.

    PYTHONPATH=.:tests/support:tests/benchmarks python tests/benchmarks/memory_plan_error.py

Each process imports what ``zo-device tune`` imports, loads a bundle of random weights, makes a step or two and reads
its high-water mark: all of it counts, the interpreter and its libraries too. Cases: picollama and two blocks in the
shapes of Llama-2-7B · 16 × 16, 16 × 32, 4 × 128, 16 × 128 and 4 × 512 tokens · reference and native · float32 and
bfloat16 · one point, and two side by side where a pass is small enough for the product to run two. Of the 7B shapes
every backend and dtype with one or the other, so that all of it takes 9 minutes on 2 cores. Writes
``results/memory_plan_error.json`` and the headline ``plan.error_percent``: the worst of all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support")]

from peers.seven_b_shapes import seven_b_config, shaped_bundle  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from device_client.model.backends.choose import BackendOptions  # noqa: E402
from device_client.model.backends.names import BackendName  # noqa: E402
from device_client.model.loader import load_model  # noqa: E402
from device_client.model.sparse_model import SparseModel  # noqa: E402
from device_client.planning.memory_plan import plan_memory  # noqa: E402
from device_client.planning.workload import PAIRED_UP_TO_TOKENS, Workload  # noqa: E402
from device_client.tuning.batches import BatchIndices  # noqa: E402
from device_client.tuning.divergence import DivergenceWatch  # noqa: E402
from device_client.tuning.goals import LossGoal  # noqa: E402
from device_client.tuning.model_problem import ModelProblem  # noqa: E402
from device_client.tuning.perturbations import Drawing, PerturbationStream, drawing_of  # noqa: E402
from device_client.tuning.spsa import descend, estimate  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402
from shared.bundle.read import read_bundle  # noqa: E402
from shared.tasks.examples import Example  # noqa: E402

PICOLLAMA = {
    "model_type": "llama", "hidden_size": 320, "intermediate_size": 832, "num_hidden_layers": 5,
    "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 512,
    "vocab_size": 4096, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
MODELS = {"picollama": PICOLLAMA, "two 7B blocks": seven_b_config(blocks=2)}
SHAPES = ((16, 16), (16, 32), (4, 128), (16, 128), (4, 512))
BACKENDS: tuple[BackendName, ...] = ("reference", "native")
DTYPES = ("float32", "bfloat16")
STEPS = {"picollama": 2, "two 7B blocks": 1}
EPSILON, LR = 1e-3, 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """What one process does."""

    model: str
    rows: int
    columns: int
    backend: BackendName
    dtype: str
    points: int


def all_cases() -> Iterator[Case]:
    """Yield every case; of the large model each backend and dtype once for every shape, the points taking turns."""
    for model, (rows, columns) in product(MODELS, SHAPES):
        counts = (1, 2) if rows * columns <= PAIRED_UP_TO_TOKENS["cpu"] else (1,)
        for backend, dtype in product(BACKENDS, DTYPES):
            turn = (BACKENDS.index(backend) + DTYPES.index(dtype)) % len(counts)
            for points in counts if model == "picollama" else counts[turn : turn + 1]:
                yield Case(model, rows, columns, backend, dtype, points)


def measured(case: Case, root: str, digest: str, kernels: str) -> dict[str, int]:
    """Make the steps in this process; return what it used."""
    import device_client.tuning.tune_run  # noqa: F401  what the command imports

    backend = BackendOptions(case.backend, Path(kernels))
    bundle = read_bundle(ImageLayout(Path(root)), digest)
    model = load_model(bundle, device="cpu", compute_dtype=getattr(torch, case.dtype), backend=backend)
    loaded = model.memory.read()
    make_steps(model, case, drawing_of("gaussian", backend))
    return {
        "loaded_bytes": loaded.process_bytes,
        "loading_peak_bytes": loaded.process_peak_bytes,
        "peak_bytes": model.memory.peak_bytes,
    }


def make_steps(model: SparseModel, case: Case, drawing: Drawing) -> None:
    """Tune on made-up rows of the case's length, one candidate token each of two."""
    prompt = tuple(3 + position % 200 for position in range(case.columns - 1))
    examples = [Example((first, *prompt), ((5,), (6,)), 0, "made up") for first in range(case.rows)]
    indices = BatchIndices(case.rows, case.rows, 0)
    problem = ModelProblem(model, examples, examples, LossGoal(model, "candidates"), indices, case.rows, case.points)
    draw = PerturbationStream(0, model.sensitive_count, drawing, model.device)
    start = theta = model.initial_theta()
    steps = STEPS.get(case.model, 1)
    for step in range(steps):
        z = [draw(step, 0)]
        found = estimate(problem.losses, theta, z, EPSILON, problem.batch(step))
        theta = descend(theta, z, [each.projected_gradient for each in found], LR)
    DivergenceWatch(0.0, start).check_distance(theta, steps)


def compare(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """Return the plan of a case beside what a process of its own used."""
    root = folder / case.model.replace(" ", "-")
    bundle = shaped_bundle(root, MODELS[case.model])
    planned = plan_memory(
        bundle.config, Workload(case.rows, case.columns, points=case.points), device_type="cpu",
        value_bytes=getattr(torch, case.dtype).itemsize, backend=case.backend,
    )  # fmt: skip
    words = ["--measure", json.dumps(asdict(case)), str(root), bundle.digest, str(folder / "kernels")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, env=environment)
    found: dict[str, int] = json.loads(done.stdout)
    return {
        **asdict(case),
        **found,
        "planned_bytes": planned.total_bytes,
        "planned_parts": planned.parts,
        "error_percent": 100 * (planned.total_bytes / found["peak_bytes"] - 1),
    }


def main() -> None:
    """Measure every case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep bundles and kernels here (a temporary folder)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    with TemporaryDirectory() as temporary:
        cases = []
        for case in all_cases():
            cases.append(compare(case, arguments.folder or Path(temporary), arguments.threads))
            print(*asdict(case).values(), f"{cases[-1]['error_percent']:+.1f} %", flush=True)
    worst = max(abs(case["error_percent"]) for case in cases)
    path = write_result(
        "memory_plan_error", {"threads": arguments.threads, "worst_error_percent": worst, "cases": cases}
    )
    record_headlines(path, {"plan.error_percent": (round(worst, 2), "%")})
    print(f"worst: {worst:.1f} %")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measured(Case(**json.loads(sys.argv[2])), *sys.argv[3:])))
    else:
        main()
