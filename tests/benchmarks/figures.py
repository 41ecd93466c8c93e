"""Figures 1 and 9 of the paper, measured on this machine and drawn.

    make bench-figures                                             this CPU, under five minutes
    python tests/benchmarks/figures.py --device cuda               a GPU of 80 GB
    python tests/benchmarks/figures.py --draw                      draw again what was measured before

Figure 9: time of the linear layers of one Llama-2-7B block, 1 to 8,192 tokens, SparseAdd against SparseAddMM.
Figure 1: a training step and a generated token, 0.1 % sensitive values against 10 % random ones and against all
weights in 16 bit. Writes ``results/figures.json`` (on a GPU ``figures_<device>.json``) and the pictures beside it, and
draws again what ``tuning_methods.py`` measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from recording import RESULTS  # noqa: E402
from runtime.drawing import draw_figure_nine, draw_figure_one  # noqa: E402
from runtime.result_file import add_part  # noqa: E402
from runtime.scale import Batch, Scale, scale_for  # noqa: E402
from runtime.sparse_operations import sparse_operation_figures  # noqa: E402
from runtime.sparsity_speed import sparsity_figures  # noqa: E402
from runtime.stopwatch import Effort  # noqa: E402
from runtime.tuning_curves import draw_tuning_curves  # noqa: E402
from runtime.workplace import Workplace, device_key, tell  # noqa: E402

TOKEN_COUNTS = (*(1 << power for power in range(10)), 2048, 8192)
TINY_TOKEN_COUNTS = (1, 16, 512)
FEW_STEPS = Effort(seconds=15.0, least_rounds=3, most_rounds=5)
QUICKLY = Effort(seconds=0.0, least_rounds=2, most_rounds=2)
DRAWINGS = {"figure_9": draw_figure_nine, "figure_1": draw_figure_one}


def main() -> None:
    """Measure, unless only drawing was asked for, and draw."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as scratch:
        place = Workplace(
            scale=scale_for(arguments.shapes, "cuda" if device.type == "cuda" else "cpu"),
            device=device,
            folder=arguments.folder or Path(scratch),
            backend=arguments.backend or ("triton" if device.type == "cuda" else "native"),
        )
        results = arguments.results or (RESULTS if arguments.shapes == "7b" else place.folder / "results")
        path = results / f"{result_name(device)}.json"
        if not arguments.draw:
            path = measure(place, arguments.shapes, results)
        drawn = draw(path)
        if (tuned := path.with_name("tuning_methods.json")).exists():
            drawn += draw_tuning_curves(tuned)
        for picture in drawn:
            print(picture)


def measure(place: Workplace, shapes: str, results: Path) -> Path:
    """Measure both figures and return the result file."""
    is_tiny = shapes == "tiny"
    counts, effort = (TINY_TOKEN_COUNTS, QUICKLY) if is_tiny else (TOKEN_COUNTS, FEW_STEPS)
    blocks = {"training_blocks": 2, "inference_blocks": 2 if is_tiny else 4}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "figure_9": lambda: sparse_operation_figures(place, counts, *([QUICKLY] if is_tiny else [])),
        "figure_1": lambda: sparsity_figures(place, training_batches(place.scale, effort), **blocks),
    }
    path = results
    for name, measured in measures.items():
        tell(f"{name} …")
        found = measured() | {"dtype": str(place.scale.dtype).removeprefix("torch."), "backend": place.backend}
        path = add_part(results, result_name(place.device), name, found)
        place.clean_up()
    return path


def training_batches(scale: Scale, effort: Effort) -> tuple[Batch, ...]:
    """Return a small and a large batch."""
    large = Batch(16, 128, effort=effort) if scale.plan == "cpu" else Batch(16, 512, effort=effort)
    return Batch(16, 16, effort=effort), large


def draw(path: Path) -> list[Path]:
    """Draw what a result file holds, beside it."""
    parts = json.loads(path.read_text())["parts"]
    suffix = path.stem.removeprefix("figures")
    drawn = [drawing(parts[name], path.parent / f"{name}{suffix}") for name, drawing in DRAWINGS.items()]
    return [picture for pictures in drawn for picture in pictures]


def result_name(device: torch.device) -> str:
    """Return the result file's name without its ending."""
    return "figures" if device.type == "cpu" else f"figures_{device_key(device)}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--shapes", choices=["7b", "tiny"], default="7b")
    parser.add_argument(
        "--backend", choices=["reference", "native", "triton"], help="default: native, or triton on cuda"
    )
    parser.add_argument("--folder", type=Path, help="bundles and compiled kernels, kept; default: a temporary one")
    parser.add_argument("--results", type=Path, help="default: results/ beside this file; with tiny shapes in --folder")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
