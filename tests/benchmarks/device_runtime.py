"""How near the device runtime is to what the machine can do, and to its peers.

    python tests/benchmarks/device_runtime.py                                    this CPU, about ten minutes
    python tests/benchmarks/device_runtime.py --device cuda                      Llama-2-7B on a GPU of 80 GB, the same
    python tests/benchmarks/device_runtime.py --only decode layer                some parts, merged into the result
    python tests/benchmarks/device_runtime.py --shapes tiny --plan cuda          the GPU's program, in seconds, on a CPU

The limits, before any number (one Llama-2-7B block: 202 million weights in seven linear layers, 0.1 % sensitive):

    forward of T tokens          405·10⁶·T FLOPs; reads 405 MB in 16 bit, 103 MB packed (codes, codebooks, values)
    two forwards                 twice that; a step has the same FLOPs, and with both signs paired reads 103 MB once
    decoding into a buffer       writes 405 MB, into one buffer of at most 90 MB; into tiles in the cache nothing at all
    one token                    16 bit reads 405 MB, packed 103 MB: 3.9 × at most where memory is the limit
    update of a step             0.2 million values of 202: z, θ ± εz, two casts and writings: 0.1 % of a weight pass
    MeZO                         four passes over all weights: 0.8·10⁹ normal values drawn, 2.4 GB moved per block
    Llama-2-7B, 16 × 512         217 TFLOP a step · peak 3.6 GiB of weights, 0.1 workspace, 0.8 activations, context
    a token of Llama-2-7B        3.6 GB packed, 13.2 GB in 16 bit

Both rates of the machine (``limits``) are measured in the same run, and every figure stands beside its limit. A ratio
is taken round by round between neighbours in time. Parts: memory (peak of each trainer, a process each), checks (same
numbers as the reference, or nothing is timed), limits, layer, step, decode, mezo. Needs torch, transformers,
safetensors, numpy and pydantic only, and on CUDA triton. Writes ``results/device_runtime_<device>.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from recording import RESULTS, record_headlines  # noqa: E402
from runtime.checks import check_figures  # noqa: E402
from runtime.decode_speed import decode_figures  # noqa: E402
from runtime.headlines import headlines  # noqa: E402
from runtime.layer_speed import layer_figures  # noqa: E402
from runtime.limits import Limits, measure_limits  # noqa: E402
from runtime.mezo_speed import mezo_figures  # noqa: E402
from runtime.peak_memory import TRAINERS, child_program, measure_trainer, peak_figures  # noqa: E402
from runtime.result_file import add_part  # noqa: E402
from runtime.scale import Batch, Plan, scale_for  # noqa: E402
from runtime.step_speed import step_figures  # noqa: E402
from runtime.workplace import Workplace, device_key, tell  # noqa: E402

from shared.byte_sizes import parse_bytes  # noqa: E402

PARTS = ("memory", "checks", "limits", "layer", "step", "decode", "mezo")
"""In this order: the peaks of the children's processes are measured before this one touches CUDA."""
GPU_BUDGET = "8GiB"


def main() -> None:
    """Measure what was asked for, part by part; what is measured is kept even where a later part fails."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        place = make_place(arguments, Path(scratch))
        if arguments.trainer:
            trainer, rows, columns, points = arguments.trainer
            batch = Batch(int(rows), int(columns), int(points))
            print(json.dumps(measure_trainer(place, trainer, batch)))
            return
        results = arguments.results or (RESULTS if arguments.shapes == "7b" else place.folder / "results")
        print(measure(place, arguments.only or PARTS, results, arguments.shapes, _child(arguments, place)).read_text())


def measure(place: Workplace, parts: tuple[str, ...] | list[str], results: Path, shapes: str, child: list[str]) -> Path:
    """Measure parts, keep their figures and headlines in a folder, and return the result file.

    Args:
        place: Where and at what scale.
        parts: Of ``PARTS``.
        results: Folder of the result file and ``summary.json``.
        shapes: Part of the file's name where it is not ``7b``.
        child: Command of a process that measures one trainer's peak.
    """
    limits: list[Limits] = []

    def limits_once() -> Limits:
        if not limits:
            limits.append(measure_limits(place.scale, place.device))
            place.clean_up()
        return limits[0]

    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: peak_figures(place, child),
        "checks": lambda: check_figures(place),
        "limits": lambda: dict(limits_once().to_json()),
        "layer": lambda: layer_figures(place, limits_once()),
        "step": lambda: step_figures(place, limits_once()),
        "decode": lambda: decode_figures(place, limits_once()),
        "mezo": lambda: mezo_figures(place),
    }
    path = results
    for part in (part for part in PARTS if part in parts):
        tell(f"{part} …")
        begin = time.perf_counter()
        found = measures[part]()
        found |= {"seconds_spent": time.perf_counter() - begin, "backend": place.backend}
        device = device_key(place.device)
        name = "_".join(["device_runtime", *([] if shapes == "7b" else [shapes, place.scale.plan]), device])
        path = add_part(results, name, part, found)
        record_headlines(path, headlines(part, found, place.scale, device))
        tell(f"{part}: {found['seconds_spent']:.0f} s")
    return path


def make_place(arguments: argparse.Namespace, scratch: Path) -> Workplace:
    """Return where it is measured; the folder is a temporary one where none is named."""
    device = torch.device(arguments.device)
    plan: Plan = arguments.plan or ("cuda" if device.type == "cuda" else "cpu")
    budget = arguments.memory_budget or (GPU_BUDGET if device.type == "cuda" else None)
    return Workplace(
        scale=scale_for(arguments.shapes, plan),
        device=device,
        folder=arguments.folder or scratch,
        backend=arguments.backend or ("triton" if device.type == "cuda" else "native"),
        memory_budget_bytes=parse_bytes(budget) if budget and arguments.trainer else None,
    )


def _child(arguments: argparse.Namespace, place: Workplace) -> list[str]:
    words = [f"--device={place.device}", f"--shapes={arguments.shapes}", f"--plan={place.scale.plan}"]
    words += [f"--folder={place.folder}", f"--backend={place.backend}"]
    if arguments.memory_budget:
        words.append(f"--memory-budget={arguments.memory_budget}")
    return child_program(Path(__file__).resolve(), words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--shapes", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--plan", choices=["cpu", "cuda"], help="whose program; default: the device's")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of: {', '.join(PARTS)}")
    parser.add_argument(
        "--backend", choices=["reference", "native", "triton"], help="default: native, or triton on cuda"
    )
    parser.add_argument("--folder", type=Path, help="bundles and compiled kernels, kept; default: a temporary one")
    parser.add_argument("--results", type=Path, help="default: results/ beside this file; with tiny shapes in --folder")
    parser.add_argument("--memory-budget", help=f"cap of our own peak on CUDA ({GPU_BUDGET})")
    parser.add_argument("--trainer", nargs=4, metavar=("WHICH", "ROWS", "COLUMNS", "POINTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainer and arguments.trainer[0] not in TRAINERS:
        parser.error(f"--trainer {arguments.trainer[0]}; needed one of {', '.join(TRAINERS)}")
    return arguments


if __name__ == "__main__":
    main()
