"""Seconds per step over all blocks and over the upper ones, beside two bare forward passes of transformers.

    python tests/benchmarks/upper_blocks.py --bundle REF --home DIR [--blocks auto] [--rows 16] [--columns 32]

The bundle is one that ``zo-device pull`` or ``import`` has brought to that home. A bare forward pass is transformers'
own network of the same shapes in float32 with plain weights; see ``peers.bare_forward``. All are measured in turn, so
that the machine's drift hits all alike. Steps over upper blocks are measured after their first epoch, when the states
below them are kept; a step whose rows are all new stands beside.

    tune.seconds_per_step.zo          step over all blocks / two bare forward passes
    tune.seconds_per_step.zo_upper    step over the upper blocks / two bare forward passes

Each is the median of the ratios round by round. Writes ``results/upper_blocks.json``. Needs about 2 GiB for a model of
135 million weights, and a minute.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

import torch  # noqa: E402
from peers.bare_forward import two_bare_forwards  # noqa: E402
from peers.seven_b_shapes import plain_model  # noqa: E402
from recording import RESULTS, record_headlines, write_result  # noqa: E402
from runtime.scale import Batch  # noqa: E402
from runtime.stopwatch import Effort, alternate, as_json, ratio, seconds_of  # noqa: E402
from runtime.workplace import tell  # noqa: E402
from runtime.zo_step import BATCHES_PER_EPOCH, ZoStep, random_examples  # noqa: E402

from device_client.model.backends.choose import BackendOptions  # noqa: E402
from device_client.model.backends.names import BACKEND_NAMES  # noqa: E402
from device_client.model.kept_states import KeptStates  # noqa: E402
from device_client.model.open import Machine, open_model  # noqa: E402
from device_client.planning.memory_fit import side_by_side  # noqa: E402
from device_client.planning.methods import tuned_part  # noqa: E402
from device_client.planning.step_cost import step_cost  # noqa: E402
from device_client.planning.tuned_blocks import ALL_BLOCKS, tuned_blocks  # noqa: E402
from device_client.settings import Settings  # noqa: E402
from device_client.store import resolve_bundle  # noqa: E402
from device_client.tasks.layout import lay_out  # noqa: E402
from device_client.tuning.perturbations import drawing_of  # noqa: E402
from shared.bundle.read import Bundle  # noqa: E402

BUDGET_BYTES = 8 << 30
GOALS = {"zo": 1.1, "zo_upper": 0.45}


def main() -> None:
    """Measure, write the result, record the headlines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, metavar="REF", help="name[:tag] of a bundle in that home")
    parser.add_argument("--home", required=True, type=Path, help="folder of zo-device")
    parser.add_argument("--blocks", default="auto", help="what is tuned beside all blocks: auto or upper:N")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--columns", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    bundle = resolve_bundle(Settings(arguments.home), arguments.bundle)
    batch = Batch(arguments.rows, arguments.columns)
    backend = BackendOptions(arguments.backend, arguments.home / "backends", tell)
    found = measure(bundle, backend, arguments.blocks, batch, arguments.rounds)
    path = write_result("upper_blocks", {"bundle": arguments.bundle, **found}, arguments.results)
    record_headlines(
        path,
        {
            f"tune.seconds_per_step.{name}": (round(found["over_two_bare_forwards"][name]["median"], 3), "x")
            for name in GOALS
        },
    )
    print(json.dumps(found, indent=1))


def measure(bundle: Bundle, backend: BackendOptions, blocks: str, batch: Batch, rounds: int) -> dict[str, Any]:
    """Return the timings of steps and of bare forward passes, and the shares that are predicted.

    Args:
        bundle: What is tuned.
        backend: What decodes and multiplies.
        blocks: ``auto`` or ``upper:N``.
        batch: Rows of a step.
        rounds: How often each is measured.
    """
    examples = random_examples(batch, int(bundle.config.architecture["vocab_size"]))
    machine = Machine(device="cpu", memory_budget_bytes=BUDGET_BYTES, backend=backend)
    drawing = drawing_of("gaussian", backend)
    tuned = tuned_blocks(bundle.config, blocks)
    shapes = {name: side_by_side(examples, batch.rows, queries=1, blocks=name) for name in (ALL_BLOCKS, tuned.name)}
    whole, part = (open_model(bundle, machine, shape) for shape in shapes.values())
    kept = KeptStates(part.fit.kept_states_bytes)
    upper = part.tuned_part(tuned_part(bundle.config, "sparse", blocks), kept)
    device = whole.model.device
    plain = plain_model(bundle.config.architecture, dtype=whole.model.compute_dtype, device="cpu").eval()
    tokens = lay_out(examples[: batch.rows], micro_batch_rows=batch.rows, device=device).buckets[0].tokens
    upper_step = ZoStep(part.model, batch, points=batch.points, drawing=drawing, upper=upper)
    new_rows = [seconds_of(upper_step, device) for _ in range(BATCHES_PER_EPOCH)]
    actions = {
        "two_bare_forwards": lambda: two_bare_forwards(plain, tokens),
        "zo": ZoStep(whole.model, batch, points=batch.points, drawing=drawing),
        "zo_upper": upper_step,
    }
    timings = alternate(actions, device, Effort(seconds=0.0, least_rounds=rounds, most_rounds=rounds))
    predicted = step_cost(bundle.config, shapes[tuned.name])
    return {
        "blocks": f"{tuned.name} of {tuned.count}",
        "rows": batch.rows,
        "columns": batch.columns,
        "threads": torch.get_num_threads(),
        "backend": whole.model.backend_name,
        "timings": as_json(timings),
        "over_two_bare_forwards": {name: ratio(timings[name], timings["two_bare_forwards"]) for name in GOALS},
        "upper_over_all": ratio(timings["zo_upper"], timings["zo"]),
        "predicted_upper_over_all": {"kept": predicted.kept, "new": predicted.new},
        "seconds_where_all_rows_are_new": statistics.median(new_rows),
        "kept_states_bytes": kept.memory_bytes,
        "planned_kept_states_bytes": part.fit.kept_states_bytes,
        "peak_memory_bytes": whole.model.memory.peak_bytes,
        "goals": GOALS,
    }


if __name__ == "__main__":
    main()
