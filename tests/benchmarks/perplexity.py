"""Perplexity of two real models in 16 bits and under three 4-bit quantisers, with and without the sparse part.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 python tests/benchmarks/perplexity.py [--floors]

Calibration: 128 sequences of 512 tokens from C4 documents 200 … 999. Evaluation: C4 documents 0 … 199, each on its
own, and WikiText-2 test as one stream. ``--floors`` compares the floor λ of the importance (``pipeline/quantize.py``)
instead and changes no headline. Takes about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recording import record_headlines, write_result
from torch import Tensor

from cloud_service.pipeline.calibration import calibration_sequences
from cloud_service.pipeline.documents import read_documents
from cloud_service.pipeline.fisher import FisherSums, accumulate, empty_sums
from cloud_service.pipeline.load_model import LoadedModel, load_model
from cloud_service.pipeline.perplexity import evaluation_windows, sum_losses
from cloud_service.pipeline.quantize import flat_index, importance_of, quantize
from cloud_service.pipeline.report import mass_curve
from cloud_service.pipeline.select_sensitive import Masks, gradient_mass, overlap, select_largest
from cloud_service.pipeline.tokenization import TextEncoder, load_encoder
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import CalibrationSpec, QuantizerSpec
from shared.quantization.codec import dequantize

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data"))
MODELS = {"picollama": "picollama-sentiment", "stories260k": "stories260K-hf"}
C4 = TextSource(DATA / "text" / "c4" / "c4-en-1000.jsonl")
WIKITEXT2 = DATA / "text" / "wikitext-2" / "test.txt"
HELD_OUT = 200
SPARSITY = 0.001
QUANTIZERS = {
    "lut4": QuantizerSpec(method="lut", bits=4),
    "uniform4_g64": QuantizerSpec(method="uniform", bits=4, group_size=64),
    "rtn4_g64": QuantizerSpec(method="rtn", bits=4, group_size=64),
}
FLOORS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)

Windows = dict[str, list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floors", action="store_true")
    compares_floors = parser.parse_args().floors
    measure = measure_floors if compares_floors else measure_quantizers
    results = {key: measure(DATA / "models" / name) for key, name in MODELS.items()}
    path = write_result("perplexity_floors" if compares_floors else "perplexity", {"models": results})
    print(path.read_text())
    if not compares_floors:
        record_headlines(path, dict(headlines(results)))


def headlines(results: dict[str, Any]) -> Iterable[tuple[str, tuple[float, str]]]:
    """Yield the headline figures: perplexities with the sparse part."""
    for model, result in results.items():
        for text, value in result["fp16"].items():
            yield f"ppl.{model}.{text}.fp16", (value, "perplexity")
        for quantizer in QUANTIZERS:
            for text, value in result[quantizer]["with_sparse"].items():
                yield f"ppl.{model}.{text}.{quantizer}", (value, "perplexity")


def measure_quantizers(folder: Path) -> dict[str, Any]:
    """Return every figure of one model."""
    model, encoder, windows = load(folder)
    fisher, masks, quality = estimate(model, encoder)
    originals = {name: model.weight(name).clone() for name in model.linear_names}
    result: dict[str, Any] = {"mask": quality, "fp16": perplexities(model, windows)}
    for key, spec in QUANTIZERS.items():
        bits = write_quantized(model, originals, lambda name, _: fisher_importance(fisher, masks, name), spec)
        without = perplexities(model, windows)
        write_sparse(model, originals, masks)
        result[key] = {"bits_per_weight": bits, "with_sparse": perplexities(model, windows), "without_sparse": without}
        print(folder.name, key, result[key], flush=True)
    return result


def measure_floors(folder: Path) -> dict[str, Any]:
    """Return the perplexity of ``lut4`` with the sparse part for several floors of the importance."""
    model, encoder, windows = load(folder)
    fisher, masks, _ = estimate(model, encoder)
    originals = {name: model.weight(name).clone() for name in model.linear_names}
    windows = {"c4": windows["c4"]}
    result: dict[str, Any] = {"fp16": perplexities(model, windows)}
    for key, spec in QUANTIZERS.items():
        for floor in FLOORS if spec.method != "rtn" else ():

            def importance(name: str, device: torch.device, floor: float = floor) -> Tensor:
                return importance_of(fisher[name], flat_index(masks[name], device), floor)

            write_quantized(model, originals, importance, spec)
            write_sparse(model, originals, masks)
            result[f"{key} floor {floor:g}"] = perplexities(model, windows)
            print(folder.name, key, floor, result[f"{key} floor {floor:g}"], flush=True)
    return result


def load(folder: Path) -> tuple[LoadedModel, TextEncoder, Windows]:
    """Return the model, its encoder and the windows of both texts."""
    model = load_model(folder)
    encoder = load_encoder(folder, model.architecture, model.context_length)
    return (
        model,
        encoder,
        {
            "c4": evaluation_windows(islice(read_documents(C4, SourcePolicy()), HELD_OUT), encoder),
            "wikitext2": evaluation_windows([WIKITEXT2.read_text(encoding="utf-8")], encoder),
        },
    )


def estimate(model: LoadedModel, encoder: TextEncoder) -> tuple[dict[str, Tensor], Masks, dict[str, float]]:
    """Return the Fisher diagonal, the masks, and the masks' quality."""
    sequences = calibration_sequences(read_documents(C4, SourcePolicy()), encoder, CalibrationSpec(), held_out=HELD_OUT)
    weights = {name: model.parameters[name] for name in model.linear_names}
    sums = empty_sums(weights)
    accumulate(model.network, weights, sequences, sums, after_sequence=show)
    halves = [select_largest(half, SPARSITY, "per_tensor") for half in (sums.even, sums.odd)]
    fisher = sums.into_diagonal()
    masks = select_largest(fisher, SPARSITY, "per_tensor")
    everything = select_largest(fisher, SPARSITY, "global")
    return (
        fisher,
        masks,
        {
            "split_half_overlap": overlap(*halves),
            "gradient_mass_per_tensor": gradient_mass(fisher, masks),
            "gradient_mass_global": gradient_mass(fisher, everything),
            "mean_of_tensors_gradient_mass": sum(mass_curve(f, [SPARSITY])[0] for f in fisher.values()) / len(fisher),
        },
    )


def show(sums: FisherSums) -> None:
    if sums.count % 32 == 0:
        print(f"Fisher: {sums.count} sequences", flush=True)


def fisher_importance(fisher: dict[str, Tensor], masks: Masks, name: str) -> Tensor:
    return importance_of(fisher[name], flat_index(masks[name], fisher[name].device))


def write_quantized(
    model: LoadedModel,
    originals: dict[str, Tensor],
    importance: Callable[[str, torch.device], Tensor],
    spec: QuantizerSpec,
) -> float:
    """Put the dense part of every weight into the network; return the stored bits per weight."""
    stored = 0
    for name, weight in originals.items():
        quantized = quantize(weight, importance(name, weight.device), spec)
        stored += quantized.size_bytes
        model.parameters[name].data.copy_(dequantize(quantized))
    return 8 * stored / sum(weight.numel() for weight in originals.values())


def write_sparse(model: LoadedModel, originals: dict[str, Tensor], masks: Masks) -> None:
    """Put the sensitive weights back."""
    for name, weight in originals.items():
        index = flat_index(masks[name], weight.device)
        model.parameters[name].data.view(-1)[index] = weight.flatten()[index]


def perplexities(model: LoadedModel, windows: Windows) -> dict[str, float]:
    return {text: sum_losses(model.network, parts).perplexity for text, parts in windows.items()}


if __name__ == "__main__":
    main()
