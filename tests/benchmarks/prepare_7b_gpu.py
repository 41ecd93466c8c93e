"""A preparation of Llama-2-7B shapes with random weights, on one accelerator: time and peak memory against the plan.

    python tests/benchmarks/prepare_7b_gpu.py                        7B on CUDA, about 5 minutes on an H100
    python tests/benchmarks/prepare_7b_gpu.py --shape tiny           the same steps on a CPU, seconds

1. For budgets of 24, 40 and 80 GiB (those that the device has): the plan; then, with torch's allocator capped at the
   budget, its passes over synthetic sequences of 512 tokens: seconds per calibration sequence (all passes of one
   sequence, median of several after one to warm up), and the peak against the plan.
2. Every linear weight of all blocks quantised by ``lut`` at 4 bits with its 0.1 % mask: seconds in all. Beyond the time
   limit the rest is extrapolated from what was done, and the result says which share was measured. Then the first
   block once more with error compensation, on second moments of random inputs: seconds of all blocks, extrapolated.
3. The first blocks stored in an image layout: bytes per second, digests included.

Needs torch, transformers, safetensors, numpy and pydantic only. Writes ``results/prepare_7b_<device>.json``; only a run
on CUDA records headlines, those of its largest budget.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parent.parent)]

from random_network import SEVEN_BILLION, TINY, RandomNetwork, random_network  # noqa: E402
from recording import record_headlines, write_result  # noqa: E402

from cloud_service.memory_budget import MemoryBudget  # noqa: E402
from cloud_service.pipeline.calibration.sequences import Calibration  # noqa: E402
from cloud_service.pipeline.fisher.select_sensitive import Masks, select_largest  # noqa: E402
from cloud_service.pipeline.fisher.shards import shard_count  # noqa: E402
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums  # noqa: E402
from cloud_service.pipeline.planning.family_shapes import shapes_of_config  # noqa: E402
from cloud_service.pipeline.planning.machine_probe import probe_machine  # noqa: E402
from cloud_service.pipeline.planning.memory_meter import MemoryMeter, TorchAccelerators  # noqa: E402
from cloud_service.pipeline.planning.model_shape import ModelShape, shape_of_tensors  # noqa: E402
from cloud_service.pipeline.planning.peak_memory import CONTEXT_BYTES  # noqa: E402
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan, plan_preparation  # noqa: E402
from cloud_service.pipeline.planning.workload import Machine, Workload  # noqa: E402
from cloud_service.pipeline.quantizers.quantize import DensePart, Original, quantize_unmasked  # noqa: E402
from cloud_service.pipeline.quantizers.tensor_blobs import add_block  # noqa: E402
from shared.api import QuantizerSpec  # noqa: E402
from shared.bundle.layout import ImageLayout  # noqa: E402

GIB = 1 << 30
BUDGETS_GIB = (24, 40, 80)
SEQUENCES, SPARSITY = 128, 0.001
STORED_BLOCKS = 4
SPEC = QuantizerSpec(method="lut", bits=4, compensation="none")
COMPENSATED = SPEC.model_copy(update={"compensation": "gptq"})
MOMENT_ROWS = 8192


def main() -> None:
    """Measure everything, write the result, record the headlines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["7b", "tiny"], default="7b")
    parser.add_argument("--device", help="default: cuda for 7b, cpu for tiny")
    parser.add_argument("--rows", type=int, default=5, help="timed sequences of each pass (5)")
    parser.add_argument("--quantize-limit-seconds", type=float, default=240.0)
    arguments = parser.parse_args()
    config = SEVEN_BILLION if arguments.shape == "7b" else TINY
    device = torch.device(arguments.device or ("cuda" if arguments.shape == "7b" else "cpu"))
    result = measure(config, device, arguments.rows, arguments.quantize_limit_seconds)
    name = device_name(device)
    path = write_result(f"prepare_{arguments.shape}_{name}", result)
    if device.type == "cuda":
        record_headlines(path, headlines(result, f"gpu.{name}.prepare_{arguments.shape}"))
    print(path.read_text())


def measure(config: dict[str, Any], device: torch.device, rows: int, limit_seconds: float) -> dict[str, Any]:
    """Return all figures for a shape on a device."""
    shape = shape_of_tensors(config, shapes_of_config(config))
    tokens = min(512, shape.context, 8 * shape.hidden)
    with tempfile.TemporaryDirectory() as folder:
        machine = probe_machine(device=str(device), budget=MemoryBudget(), folder=Path(folder), quantizer=SPEC)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        begin = time.perf_counter()
        made = random_network(config, device=str(device), dtype=dtype)
        synchronize(device)
        result: dict[str, Any] = {
            "elements": shape.elements,
            "tokens_per_sequence": tokens,
            "make_seconds": time.perf_counter() - begin,
            "context_bytes": context_bytes(device),
            "rates": {name: getattr(machine.rates, name) for name in machine.rates.__slots__},
            "budgets": {
                budget: fisher_figures(made, shape, capped, tokens, rows) for budget, capped in budgets(machine).items()
            },
        }
        uncap(device)
        return result | quantizing_figures(made, Path(folder), limit_seconds)


def budgets(machine: Machine) -> dict[str, Machine]:
    """Return the machine under each budget that it has the memory for; a CPU under its own alone."""
    if not machine.accelerator_budgets:
        return {"host": machine}
    total = machine.accelerator_budgets[0]
    # A card sold as 80 GiB has a little less; it stands for the largest budget that it is within a tenth of.
    chosen = {f"{gib}GiB": min(gib * GIB, total) for gib in BUDGETS_GIB if 0.9 * gib * GIB <= total}
    return {
        name: Machine((budget,), machine.host_budget, machine.host_baseline, machine.rates)
        for name, budget in chosen.items()
    }


def fisher_figures(made: RandomNetwork, shape: ModelShape, machine: Machine, tokens: int, rows: int) -> dict[str, Any]:
    """Run the passes of the plan for a machine on synthetic sequences."""
    device = next(made.network.parameters()).device
    plan = plan_preparation(shape, Workload(SEQUENCES, tokens, shard_count(SEQUENCES), SPARSITY), machine)
    cap(device, machine)
    calibration = synthetic(shape.vocabulary, rows + 1, tokens)
    meter = MemoryMeter(TorchAccelerators((device.index or 0,) if device.type == "cuda" else ()))
    with meter.stage("calibrating"):
        seconds = [pass_seconds(made, plan, group, calibration) for group in plan.passes]
    peak, planned = meter.peaks["calibrating"], plan.stage("calibrating")
    measured_bytes = max(peak.accelerator_bytes, default=peak.host_bytes)
    planned_bytes = max(planned.accelerator_bytes, default=planned.host_bytes)
    return {
        "plan": plan.to_json(),
        "seconds_per_sequence": sum(seconds),
        "planned_seconds_per_sequence": planned.seconds / SEQUENCES,
        "tokens_per_second": tokens / sum(seconds),
        "measured_peak_bytes": measured_bytes,
        "planned_peak_bytes": planned_bytes,
        "measured_over_planned": measured_bytes / planned_bytes,
    }


def pass_seconds(made: RandomNetwork, plan: PreparationPlan, group: tuple[int, ...], calibration: Calibration) -> float:
    """Return the median seconds of one sequence in one pass; the first one warms up."""
    weights = made.weights(group)
    device = next(iter(weights.values())).device
    sums = zero_sums(weights, on_host=plan.accumulators == "host")
    marks = []

    def mark() -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    sum_squares(
        made.network,
        weights,
        calibration,
        range(len(calibration.tokens)),
        sums,
        recomputed_blocks=made.blocks if plan.recomputes_activations else (),
        after_sequence=mark,
    )
    assert all(bool(torch.isfinite(total).all()) and float(total.max()) > 0 for total in sums.values())
    return statistics.median(after - before for before, after in itertools.pairwise(marks))


def quantizing_figures(made: RandomNetwork, folder: Path, limit_seconds: float) -> dict[str, Any]:
    """Quantise every linear weight and store the first blocks."""
    layout = ImageLayout.create(folder / "layout")
    parameters = dict(made.network.named_parameters())
    total = sum(parameters[name].numel() for names in made.block_linears for name in names)
    seconds, done, stored_bytes, storing_seconds = 0.0, 0, 0, 0.0
    for block, names in enumerate(made.block_linears):
        begin = time.perf_counter()
        masks, dense = quantize_block({name: parameters[name] for name in names})
        synchronize(parameters[names[0]].device)
        seconds += time.perf_counter() - begin
        done += sum(parameters[name].numel() for name in names)
        if block < STORED_BLOCKS:
            begin = time.perf_counter()
            stored_bytes += add_block(layout, block, dense, masks, {}).layer.size
            storing_seconds += time.perf_counter() - begin
        if seconds > limit_seconds:
            break
    names = made.block_linears[0]
    begin = time.perf_counter()
    quantize_block({name: parameters[name] for name in names}, COMPENSATED)
    synchronize(parameters[names[0]].device)
    return {
        "compensated_seconds_extrapolated": (time.perf_counter() - begin) * len(made.block_linears),
        "quantize_seconds": seconds * total / done,
        "quantize_measured_share": done / total,
        "quantized_weights": total,
        "quantized_weights_per_second": done / seconds,
        "bundle_bytes_per_second": stored_bytes / storing_seconds,
        "bundle_bytes_written": stored_bytes,
    }


def quantize_block(weights: dict[str, Tensor], spec: QuantizerSpec = SPEC) -> tuple[Masks, dict[str, DensePart]]:
    """Return masks and dense parts of one block; its Fisher diagonal is drawn: heavy-tailed, as real ones are."""
    masks: Masks = {}
    dense: dict[str, DensePart] = {}
    for seed, (name, parameter) in enumerate(weights.items()):
        weight = parameter.detach().to(torch.float16).float()
        generator = torch.Generator(weight.device).manual_seed(seed)
        fisher = torch.empty_like(weight).normal_(generator=generator).square_().square_()
        masks |= select_largest({name: fisher}, SPARSITY, "per_tensor")
        moment = second_moment(weight, generator) if spec.compensation == "gptq" else None
        dense[name] = quantize_unmasked([Original(weight, fisher, masks[name])], spec, moment)[0]
    return masks, dense


def second_moment(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return E[x xᵀ] of random inputs of the weight."""
    inputs = torch.empty(MOMENT_ROWS, weight.shape[1], device=weight.device).normal_(generator=generator)
    return inputs.T @ inputs / MOMENT_ROWS


def synthetic(vocabulary: int, rows: int, tokens: int) -> Calibration:
    """Return random sequences."""
    generator = torch.Generator().manual_seed(0)
    return Calibration.of_windows(torch.randint(0, vocabulary, (rows, tokens), generator=generator, dtype=torch.int32))


def cap(device: torch.device, machine: Machine) -> None:
    """Let torch's allocator take no more than the budget leaves beside the context."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        share = (machine.accelerator_budgets[0] - CONTEXT_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)


def uncap(device: torch.device) -> None:
    """Let torch's allocator take all of the device again."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def context_bytes(device: torch.device) -> int:
    """Return what the device's memory holds beside torch's allocator: the context, where nothing else runs there."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Return a short name for keys, such as ``h100``."""
    if device.type == "cpu":
        return "cpu"
    words = re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower()).strip("_")
    known = re.search(r"(gh200|h200|h100|a100|b200|l40s|l40|l4|a10g|a10|t4|v100|rtx_\w+)", words)
    return known[1] if known else words


def headlines(result: dict[str, Any], prefix: str) -> dict[str, tuple[float | int | bool, str]]:
    """Return the headline figures: the largest budget's time, the peak beside it, the quantisation."""
    largest = list(result["budgets"].values())[-1]
    return {
        f"{prefix}.seconds_per_sequence": (largest["seconds_per_sequence"], "s"),
        f"{prefix}.peak_gib": (largest["measured_peak_bytes"] / GIB, "GiB"),
        f"{prefix}.quantize_seconds": (result["quantize_seconds"], "s"),
    }


if __name__ == "__main__":
    main()
