"""Perplexity of two real models in 16 bits and behind ten 4-bit quantisers, with and without the sparse part.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 python tests/benchmarks/perplexity.py [--widths | --floors]

Calibration: 128 sequences of 512 tokens from C4 documents 200 … 999. Evaluation: C4 documents 0 … 199, each on its
own, and WikiText-2 test as one stream. ``with_sparse``: the 0.1 % most sensitive weights are kept out of the quantiser
and in 16 bits. ``without_sparse``: nothing is kept out, on C4 alone. ``kl`` is the mean divergence, in nats per token,
of the 16-bit model's predictions from the quantised model's on a part of C4: it tells quantisers apart that differ by
less than perplexities vary. The named peers are made here by their published recipes, in the same run:

    rtn4_g64, rtn4_g128   scale and bias from the group's range
    nf4_g64               the 16 values of NF4, times the group's largest magnitude (QLoRA)
    gptq4_g128            rtn with error compensation, no Fisher values (GPTQ)
    squeezellm4           scikit-learn's KMeans row by row, weighted by the Fisher diagonal alone (SqueezeLLM)

``--widths`` compares error compensation at 2 and 3 bits, ``--floors`` the floor λ of the importance
(``pipeline/quantizers/quantize.py``); both only on C4, and neither changes a headline.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.four_bit_recipes import NF4
from recording import RESULTS, record_headlines, write_result
from sklearn.cluster import KMeans
from torch import Tensor

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.calibration.sequences import Calibration, calibration_sequences
from cloud_service.pipeline.evaluation.perplexity import evaluation_windows, sum_losses
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork, LocalLauncher
from cloud_service.pipeline.fisher.select_sensitive import Masks, gradient_mass, overlap, select_largest
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.block_inputs import capture
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.model.tokenization import TextEncoder, load_encoder
from cloud_service.pipeline.quantizers.lut import nearest_codes
from cloud_service.pipeline.quantizers.quantize import Original, flat_index, importance_of, quantize, quantize_unmasked
from cloud_service.pipeline.quantizers.rtn import split_into_groups
from cloud_service.pipeline.report.document import mass_curve
from cloud_service.pipeline.workspace import Workspace
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import CalibrationSpec, QuantizerSpec
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes
from shared.sensitivity_mask import SensitivityMask

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
MODELS = {"picollama": "picollama-sentiment", "stories260k": "stories260K-hf"}
C4 = TextSource(DATA / "text" / "c4" / "c4-en-1000.jsonl")
WIKITEXT2 = DATA / "text" / "wikitext-2" / "test.txt"
HELD_OUT = 200
SPARSITY = 0.001
FLOORS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
HEADLINES = (
    "lut4", "lut4_gptq", "uniform4_g64", "uniform4_g64_gptq", "nf4_g64", "rtn4_g64", "rtn4_g128", "gptq4_g128",
    "squeezellm4",
)  # fmt: skip
COMPARED_WINDOWS = 8
"""Every eighth window's predictions are compared with the 16-bit model's."""

NO_MASK = SensitivityMask(np.array([], np.int32), np.array([], np.int32))
Windows = dict[str, list[list[int]]]
Quantise = Callable[[Tensor, Tensor, SensitivityMask, Tensor | None], QuantizedTensor]
"""Weight, Fisher diagonal, mask and second moment of the inputs → the dense part."""


@dataclass(frozen=True)
class Contender:
    """A way to quantise, and whether it needs the second moments of the inputs."""

    quantise: Quantise
    needs_moments: bool = False


@dataclass(frozen=True)
class Subject:
    """A model, what there is to know for its quantisation, and the texts it is measured on."""

    model: LoadedModel
    originals: dict[str, Tensor]
    calibration: Calibration
    fisher: dict[str, Tensor]
    masks: Masks
    mask_quality: dict[str, float]
    windows: Windows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--widths", action="store_true")
    choice.add_argument("--floors", action="store_true")
    choice.add_argument("--combine", action="store_true", help="only join the results that --model kept")
    parser.add_argument("--model", choices=MODELS, help="only this one; changes no headline")
    arguments = parser.parse_args()
    if arguments.combine:
        combine()
        return
    name, measure = "perplexity", measure_quantisers
    if arguments.widths or arguments.floors:
        contenders = widths() if arguments.widths else floors()
        name = "perplexity_widths" if arguments.widths else "perplexity_floors"
        measure = functools.partial(measure_on_c4, contenders)
    chosen = [arguments.model] if arguments.model else list(MODELS)
    results = {key: measure(prepare_subject(DATA / "models" / MODELS[key])) for key in chosen}
    path = write_result(name if not arguments.model else f"{name}_{arguments.model}", {"models": results})
    print(path.read_text())
    if name == "perplexity" and not arguments.model:
        record_headlines(path, dict(headlines(results)))


def combine() -> None:
    """Make one result of those of single models, so that these may run side by side."""
    parts = {key: RESULTS / f"perplexity_{key}.json" for key in MODELS}
    results = {key: json.loads(path.read_text())["models"][key] for key, path in parts.items()}
    record_headlines(write_result("perplexity", {"models": results}), dict(headlines(results)))
    for path in parts.values():
        path.unlink()


def headlines(results: dict[str, Any]) -> Iterable[tuple[str, tuple[float, str]]]:
    """Yield the headline figures: perplexities with the sparse part."""
    for model, result in results.items():
        for text, value in result["fp16"].items():
            yield f"ppl.{model}.{text}.fp16", (value, "perplexity")
        for quantiser in HEADLINES:
            for text, value in result[quantiser]["with_sparse"].items():
                yield f"ppl.{model}.{text}.{quantiser}", (value, "perplexity")


def quantisers() -> dict[str, Contender]:
    """Return ours, and the published recipes."""
    return {
        "lut4": ours(QuantizerSpec(method="lut", compensation="none")),
        "lut4_gptq": ours(QuantizerSpec(method="lut", compensation="gptq")),
        "uniform4_g64": ours(QuantizerSpec(method="uniform", compensation="none")),
        "uniform4_g64_gptq": ours(QuantizerSpec(method="uniform", compensation="gptq")),
        "rtn4_g64": ours(QuantizerSpec(method="rtn", compensation="none")),
        "rtn4_g128": ours(QuantizerSpec(method="rtn", group_size=128, compensation="none")),
        "nf4_g64": Contender(nf4),
        "gptq4_g128": ours(QuantizerSpec(method="rtn", group_size=128, compensation="gptq")),
        "squeezellm4": Contender(squeezellm),
    }


def widths() -> dict[str, Contender]:
    """Return ours at 2 and 3 bits, with and without error compensation."""
    specs = (
        QuantizerSpec(method=method, bits=bits, compensation=compensation)  # type: ignore[arg-type]
        for bits in (3, 2)
        for method in ("lut", "uniform", "rtn")
        for compensation in ("none", "gptq")
    )
    return {f"{s.method}{s.bits}{'_gptq' if s.compensation == 'gptq' else ''}": ours(s) for s in specs}


def floors() -> dict[str, Contender]:
    """Return ours with several floors of the importance."""

    def with_floor(spec: QuantizerSpec, floor: float) -> Contender:
        return Contender(lambda w, f, m, _: quantize(w, importance_of(f, flat_index(m, w.device), floor), spec))

    specs = {"lut4": QuantizerSpec(method="lut"), "uniform4_g64": QuantizerSpec(method="uniform")}
    return {f"{key} floor {floor:g}": with_floor(spec, floor) for key, spec in specs.items() for floor in FLOORS}


def ours(spec: QuantizerSpec) -> Contender:
    return Contender(
        lambda w, f, m, h: quantize_unmasked([Original(w, f, m)], spec, h)[0].weight, spec.compensation == "gptq"
    )


def nf4(weight: Tensor, fisher: Tensor, mask: SensitivityMask, second_moment: Tensor | None) -> QuantizedTensor:
    """Return the normal-float codes with a float16 scale per 64 columns; masked weights are no part of it."""
    kept = weight.clone()
    kept.view(-1)[flat_index(mask, weight.device)] = 0
    groups = split_into_groups(kept, 64)
    scale = groups.abs().amax(dim=2).clamp_min(2.0**-24).to(torch.float16)
    table = torch.tensor([NF4]).to(torch.float16)
    relative = (groups / scale[..., None].to(torch.float32)).flatten(1)[:, : weight.shape[1]]
    codes = nearest_codes(relative, table.expand(len(weight), -1))
    return QuantizedTensor(pack_codes(codes.to(torch.uint8), 4), weight.shape[1], 4, table, scale, None, 64)


def squeezellm(weight: Tensor, fisher: Tensor, mask: SensitivityMask, second_moment: Tensor | None) -> QuantizedTensor:
    """Return per-row codebooks by the recipe of SqueezeLLM's repository: masked weights count nothing."""
    counted = fisher.clone()
    counted.view(-1)[flat_index(mask, weight.device)] = 0
    lut = torch.empty(len(weight), 16, dtype=torch.float16)
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    for row, (values, mass) in enumerate(zip(weight.numpy(), counted.numpy(), strict=True)):
        kmeans = KMeans(n_clusters=16, random_state=0, n_init="auto", max_iter=50)
        kmeans.fit(values[:, None], sample_weight=mass if mass.sum() else np.ones_like(mass))
        lut[row] = torch.from_numpy(kmeans.cluster_centers_[:, 0])
        codes[row] = torch.from_numpy(kmeans.labels_)
    return QuantizedTensor(pack_codes(codes, 4), weight.shape[1], 4, lut=lut)


def measure_quantisers(subject: Subject) -> dict[str, Any]:
    """Return every figure of one model at 4 bits."""
    reference = sixteen_bit_predictions(subject)
    result: dict[str, Any] = {"mask": subject.mask_quality, "fp16": perplexities(subject, "c4", "wikitext2")}
    for key, contender in quantisers().items():
        bits = write_quantised(subject, contender, subject.masks)
        kl, with_sparse = divergence(subject, reference), perplexities(subject, "c4", "wikitext2")
        write_quantised(subject, contender, dict.fromkeys(subject.masks, NO_MASK))
        without = perplexities(subject, "c4") | {"kl": divergence(subject, reference)}
        result[key] = {"bits_per_weight": bits, "kl": kl, "with_sparse": with_sparse, "without_sparse": without}
        print(key, result[key], flush=True)
    return result


def measure_on_c4(contenders: dict[str, Contender], subject: Subject) -> dict[str, Any]:
    """Return each contender's perplexity and divergence on C4, with the sparse part."""
    reference = sixteen_bit_predictions(subject)
    result: dict[str, Any] = {"fp16": perplexities(subject, "c4")}
    for key, contender in contenders.items():
        bits = write_quantised(subject, contender, subject.masks)
        figures = {"bits_per_weight": bits, "kl": divergence(subject, reference)}
        result[key] = figures | perplexities(subject, "c4")
        print(key, result[key], flush=True)
    return result


def prepare_subject(folder: Path) -> Subject:
    """Load a model and estimate its Fisher diagonal."""
    outline = read_outline(folder)
    encoder = load_encoder(folder, outline.architecture, outline.context_length)
    windows = {
        "c4": evaluation_windows(islice(read_documents(C4, SourcePolicy()), HELD_OUT), encoder),
        "wikitext2": evaluation_windows([WIKITEXT2.read_text(encoding="utf-8")], encoder),
    }
    calibration = calibrate(encoder)
    fisher, masks, quality = estimate(folder, calibration)
    originals = {name: outline.weights.read(name).to(torch.float32) for name in outline.linear_names}
    model = load_model(outline, device="cpu", dtype=torch.float32)
    return Subject(model, originals, calibration, fisher, masks, quality, windows)


def calibrate(encoder: TextEncoder, sequences: int = 128) -> Calibration:
    spec = CalibrationSpec(sequences=sequences)
    return calibration_sequences(read_documents(C4, SourcePolicy()), encoder, spec, held_out=HELD_OUT)


def estimate(folder: Path, calibration: Calibration) -> tuple[dict[str, Tensor], Masks, dict[str, float]]:
    """Return the Fisher diagonal, the masks, and the masks' quality."""
    outline = read_outline(folder)
    blocks = outline.block_linears
    with tempfile.TemporaryDirectory() as workspace:
        totals = FisherTotals(Workspace(Path(workspace)), blocks, len(calibration), keeps_in_memory=True)
        work = FisherWork(outline, folder, calibration, FisherPasses(groups=(tuple(range(len(blocks))),)), "cpu")
        LocalLauncher().estimate(work, totals, after_sequence=show)
        halves = [select_largest(half, SPARSITY, "per_tensor") for half in totals.halves()]
        diagonal = totals.diagonal()
        fisher = {name: diagonal[name] for name in outline.linear_names}
    masks = select_largest(fisher, SPARSITY, "per_tensor")
    everything = select_largest(fisher, SPARSITY, "global")
    quality = {
        "split_half_overlap": overlap(*halves),
        "gradient_mass_per_tensor": gradient_mass(fisher, masks),
        "gradient_mass_global": gradient_mass(fisher, everything),
        "mean_of_tensors_gradient_mass": sum(mass_curve(f, [SPARSITY])[0] for f in fisher.values()) / len(fisher),
    }
    return fisher, masks, quality


def show(sequences: int) -> None:
    if sequences and sequences % 32 == 0:
        print(f"Fisher: {sequences} sequences", flush=True)


def write_quantised(subject: Subject, contender: Contender, masks: Masks) -> float:
    """Put the quantised weights into the network, masked ones as they were; return the dense bits per weight.

    Where the second moments are needed, each block's are measured behind the blocks that are already quantised.
    """
    model, parameters, stored = subject.model, subject.model.parameters, 0
    for name, weight in subject.originals.items():
        parameters[name].data.copy_(weight)
    inputs = capture(model.network, model.blocks, subject.calibration.tokens) if contender.needs_moments else None
    for block, names in zip(model.blocks, model.outline.block_linears, strict=True):
        modules = {name: model.network.get_submodule(name.removesuffix(".weight")) for name in names}
        moments = inputs.second_moments(block, modules) if inputs else {}
        for name in names:
            weight, mask = subject.originals[name], masks[name]
            quantised = contender.quantise(weight, subject.fisher[name], mask, moments.get(name))
            stored += quantised.size_bytes
            index = flat_index(mask, weight.device)
            parameters[name].data.copy_(dequantize(quantised)).view(-1)[index] = weight.flatten()[index]
        if inputs:
            inputs.advance(block)
    return 8 * stored / sum(weight.numel() for weight in subject.originals.values())


def perplexities(subject: Subject, *texts: str) -> dict[str, float]:
    return {text: sum_losses(subject.model.network, subject.windows[text]).perplexity for text in texts}


def sixteen_bit_predictions(subject: Subject) -> list[Tensor]:
    """Return the log-probabilities of the network as it stands, float16, for every eighth window of C4."""
    return [log_probabilities(subject, window).to(torch.float16) for window in compared_windows(subject)]


def divergence(subject: Subject, reference: list[Tensor]) -> float:
    """Return Σ p (log p − log q) per token, p the 16-bit model's prediction, q the network's, in nats."""
    nats, tokens = 0.0, 0
    for window, stored in zip(compared_windows(subject), reference, strict=True):
        expected = stored.to(torch.float32)
        ratio = expected - log_probabilities(subject, window)
        nats += float((expected.exp() * ratio).sum(dtype=torch.float64))
        tokens += len(expected)
    return nats / tokens


def compared_windows(subject: Subject) -> list[list[int]]:
    return subject.windows["c4"][::COMPARED_WINDOWS]


@torch.no_grad()
def log_probabilities(subject: Subject, window: list[int]) -> Tensor:
    logits: Tensor = subject.model.network(input_ids=torch.tensor([window]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(dim=-1)


if __name__ == "__main__":
    main()
