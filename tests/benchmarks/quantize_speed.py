"""Seconds that a preparation's quantising stage takes for 100 million weights of a real model.

    ZO_DATA_DIR=../shared/data OMP_WAIT_POLICY=passive python tests/benchmarks/quantize_speed.py --model FOLDER

Runs ``split_blocks`` as a preparation does, loading, second moments, codes, blobs and all, from masks that are drawn by
chance and Fisher values that are the squares of the weights with noise: neither changes what there is to compute. The
calibration is C4, ``--sequences`` of ``--tokens``. Each quantiser is run ``--runs`` times in turn, and the medians
count. The limit stated beside them: the multiplications of the blocks' two forward passes, of the second moments and
of the compensation, at the speed of this machine's float32 matrix product, measured in the same run.
Writes ``results/quantize_speed.json`` and ``quantize.seconds_per_100m_weights``, the default's. SmolLM2-135M: about a
minute a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from perplexity import C4, HELD_OUT, SPARSITY  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from cloud_service.pipeline.calibration.documents import read_documents  # noqa: E402
from cloud_service.pipeline.calibration.sequences import Calibration, calibration_sequences  # noqa: E402
from cloud_service.pipeline.fisher.select_sensitive import select_random  # noqa: E402
from cloud_service.pipeline.model.load_model import ModelOutline, load_model, read_outline  # noqa: E402
from cloud_service.pipeline.model.tokenization import load_encoder  # noqa: E402
from cloud_service.pipeline.quantizers.published_inputs import PublishedInputs  # noqa: E402
from cloud_service.pipeline.quantizers.split_blocks import split_blocks  # noqa: E402
from cloud_service.pipeline.workspace import Workspace  # noqa: E402
from cloud_service.sources import SourcePolicy  # noqa: E402
from shared.api import CalibrationSpec, QuantizerSpec  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402

SPECS = {
    "default": QuantizerSpec(),
    "lut_gptq": QuantizerSpec(method="lut", compensation="gptq"),
    "shared_g128_refit": QuantizerSpec(method="shared", group_size=128, compensation="refit"),
    "lut_none": QuantizerSpec(method="lut", compensation="none"),
}
HUNDRED_MILLION = 100_000_000


def main() -> None:
    """Measure in turn and record the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SPECS, default=list(SPECS))
    arguments = parser.parse_args()
    outline = read_outline(arguments.model)
    encoder = load_encoder(arguments.model, outline.architecture, outline.context_length)
    spec = CalibrationSpec(sequences=arguments.sequences, tokens_per_sequence=arguments.tokens)
    calibration = calibration_sequences(read_documents(C4, SourcePolicy()), encoder, spec, held_out=HELD_OUT)
    fisher = {name: noisy_squares(outline.weights.read(name)) for name in outline.linear_names}
    weights = sum(outline.linear_sizes.values())
    runs: dict[str, list[float]] = {name: [] for name in arguments.only}
    for _ in range(arguments.runs):
        for name in runs:
            runs[name].append(seconds_of(SPECS[name], outline, calibration, fisher) / weights * HUNDRED_MILLION)
            print(name, round(runs[name][-1], 1), flush=True)
    result: dict[str, Any] = {
        "model": arguments.model.name,
        "linear_weights": weights,
        "calibration": f"{arguments.sequences} x {arguments.tokens}",
        "threads": torch.get_num_threads(),
        "seconds_per_100m_weights": {name: statistics.median(seconds) for name, seconds in runs.items()},
        "all_seconds": runs,
        "limit_seconds_per_100m_weights": least_seconds(outline, arguments.sequences * arguments.tokens)
        / weights
        * HUNDRED_MILLION,
    }
    path = write_result("quantize_speed", result)
    if "default" in runs:
        median = result["seconds_per_100m_weights"]["default"]
        record_headlines(path, {"quantize.seconds_per_100m_weights": (round(median, 1), "s")})
    print(path.read_text())


def seconds_of(
    spec: QuantizerSpec, outline: ModelOutline, calibration: Calibration, fisher: dict[str, torch.Tensor]
) -> float:
    """Return the seconds of the whole stage."""
    masks = select_random(outline.linear_sizes, SPARSITY, "per_tensor", 0)
    with tempfile.TemporaryDirectory(prefix="zo-quantize-") as folder:
        layout = ImageLayout.create(Path(folder) / "bundles")
        workspace = Workspace(Path(folder) / "workspace")
        workspace.claim("quantize_speed")
        started = time.perf_counter()
        inputs = None
        if spec.compensation != "none":
            inputs = PublishedInputs(lambda: load_model(outline, device="cpu", dtype=torch.float32), calibration)
        split_blocks(
            outline, masks, fisher, spec, 8,
            layout=layout, workspace=workspace, device="cpu", after_block=lambda _: None, inputs=inputs,
        )  # fmt: skip
        return time.perf_counter() - started


def least_seconds(outline: ModelOutline, tokens: int) -> float:
    """Return the seconds of the multiplications alone, with error compensation but without refit."""
    operations = 0
    for name in outline.linear_names:
        rows, columns = outline.shapes[name]
        operations += 2 * 2 * tokens * rows * columns  # two passes through the blocks
        operations += tokens * columns**2  # H, one triangle
        operations += rows * columns**2 + columns**3  # what later columns make up for; the factor
    size = 2048
    one = torch.randn(size, size)
    product_seconds = []
    for _ in range(5):
        started = time.perf_counter()
        one @ one
        product_seconds.append(time.perf_counter() - started)
    return operations * statistics.median(product_seconds) / (2 * size**3)


def noisy_squares(weight: torch.Tensor) -> torch.Tensor:
    """Return values distributed about as a Fisher diagonal is."""
    generator = torch.Generator().manual_seed(0)
    return weight.float() ** 2 * torch.empty(weight.shape).exponential_(generator=generator)


if __name__ == "__main__":
    main()
