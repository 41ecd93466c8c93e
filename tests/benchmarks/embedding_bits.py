"""What fewer bits for the token embedding and the output head cost a real bundle, and save.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/embedding_bits.py --model FOLDER --keep FOLDER [--documents 12]
    ZO_DATA_DIR=../shared/data python tests/benchmarks/embedding_bits.py --model FOLDER --alone

``--model`` is a Hugging Face folder of SmolLM2-135M-Instruct, whose embedding is tied: 28 of its 135 million weights.
The model is prepared once, with a 16-bit embedding, into ``--keep`` (16 sequences of 256 tokens of C4; some minutes);
a second run takes it from there. Then only the embedding is swapped:

    16           as it is
    8            what ``embedding_bits`` 8 stores: 256 steps over each row's range
    8_symmetric  −127 … 127 times a scale per row
    4            what ``embedding_bits`` 4 stores: groups of 32, the grid of the smallest error
    4_g64        groups of 64, likewise
    4_row        16 steps over each row's range

``kl`` is the mean divergence, in nats per token, of the predictions of the model as published from those of the bundle,
over the windows of C4 documents 0 …; ``perplexity`` is on the same tokens. The default is the smallest form whose KL is
less than 2 % above that of 16 bits. The embedding came out of the GGUF with about 29 different values in 32, so a grid
of 16 steps has no advantage on it.

``--alone`` tells forms of 8 bits apart whose effect in a bundle is as small as the part of it that is chance: ``kl`` is
then that of a model that is as published but for its embedding, over the five shortest windows of C4 documents 0 … 5.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recording import write_result
from torch import Tensor

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.evaluation.perplexity import evaluation_windows
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.model.tokenization import load_encoder
from cloud_service.pipeline.prepare import prepare
from cloud_service.pipeline.quantizers.bundle_weights import write_dense_part, write_sensitive_part
from cloud_service.pipeline.quantizers.embeddings import quantize_embedding
from cloud_service.pipeline.quantizers.quantize import DensePart
from cloud_service.pipeline.quantizers.rtn import quantize_rtn
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob, add_trunk
from cloud_service.pipeline.quantizers.uniform import quantize_uniform
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy, TextSource
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import TRUNK_TITLE
from shared.bundle.read import Bundle, read_bundle
from shared.quantization.codec import QuantizedTensor, dequantize

DATA = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[3] / "shared" / "data")).resolve()
C4 = TextSource(DATA / "text" / "c4" / "c4-en-1000.jsonl")
POLICY = SourcePolicy(allow_any_local=True)
ALLOWED_RISE = 0.02
STORED_FORMS = ("16", "8", "4")


@dataclass
class Sums:
    """What was added up over the tokens."""

    kl: float = 0.0
    nats: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--keep", type=Path)
    choice.add_argument("--alone", action="store_true")
    parser.add_argument("--documents", type=int, default=12)
    arguments = parser.parse_args()
    if arguments.alone:
        print(write_result("embedding_bits_alone", measure_alone(arguments.model)).read_text())
        return
    calibration = {"text": str(C4.path), "sequences": 16, "tokens_per_sequence": 256}
    bundle = prepared(arguments.keep, {"model": str(arguments.model), "embedding_bits": 16, "calibration": calibration})
    tables = embeddings_of(arguments.model)
    figures, tokens = measure(arguments.model, bundle, tables, arguments.documents)
    sizes = {form: bundle_bytes(arguments.model, bundle, part) for form, (part, _) in tables.items()}
    forms = {
        form: figures[form] | {"bundle_bytes": sizes[form], "kl_rise": figures[form]["kl"] / figures["16"]["kl"] - 1}
        for form in tables
    }
    default = min(
        (form for form in STORED_FORMS if forms[form]["kl_rise"] < ALLOWED_RISE), key=lambda form: sizes[form]
    )
    path = write_result(
        "embedding_bits",
        {
            "model": arguments.model.name,
            "text": "C4 documents 0 …",
            "documents": arguments.documents,
            "tokens": tokens,
            "forms": forms,
            "default": int(default),
        },
    )
    print(path.read_text())


def prepared(keep: Path, request: dict[str, Any]) -> Bundle:
    """Return the bundle of a request, without an evaluation, prepared in ``keep`` now or earlier."""
    layout, remembered = ImageLayout.create(keep / "store"), keep / "digest"
    if not remembered.exists():
        made = prepare(
            PrepareRequest.model_validate(request | {"evaluation": {"documents": 0}}),
            workspace=keep / "work",
            layout=layout,
            progress=SilentProgress(),
            sources=POLICY,
        )
        remembered.write_text(made.manifest.digest)
    return read_bundle(layout, remembered.read_text().strip())


def embeddings_of(model: Path) -> dict[str, tuple[DensePart | None, Tensor]]:
    """Return each form of the embedding: what would be stored, None for 16 bits, and float32 what it decodes to."""
    outline = read_outline(model)
    (name,) = outline.embedding_names
    table = outline.weights.read(name)
    rows, alike = table.float(), torch.ones(table.shape)
    quantised: dict[str, Callable[[], DensePart]] = {
        "8": lambda: quantize_embedding(table, 8),
        "8_symmetric": lambda: DensePart(symmetric(rows), 0, 0),
        "4": lambda: quantize_embedding(table, 4),
        "4_g64": lambda: DensePart(quantize_uniform(rows, alike, 4, 64), 0, 0),
        "4_row": lambda: DensePart(quantize_rtn(rows, alike, 4, table.shape[1]), 0, 0),
    }
    parts = {form: make() for form, make in quantised.items()}
    return {"16": (None, rows)} | {form: (part, dequantize(part.weight)) for form, part in parts.items()}


def symmetric(rows: Tensor) -> QuantizedTensor:
    """Return −127 … 127 times a scale per row, as codes 1 … 255 with the bias −128 · scale."""
    scale = (rows.abs().amax(dim=1, keepdim=True) / 127).clamp_min(2.0**-17).half()
    codes = (rows / scale.float()).round().clamp(-127, 127) + 128
    columns = rows.shape[1]
    return QuantizedTensor(codes.to(torch.uint8), columns, 8, scale=scale, bias=-128 * scale, group_size=columns)


def bundle_bytes(model: Path, bundle: Bundle, part: DensePart | None) -> int:
    """Return the bytes of the bundle with its trunk stored so; its configuration would differ by some hundred bytes."""
    outline = read_outline(model)
    names = outline.embedding_names if part is not None else ()
    others = {name: outline.weights.read(name) for name in outline.trunk if name not in names}
    with tempfile.TemporaryDirectory() as folder:
        parts = {} if part is None else dict.fromkeys(names, part)
        trunk = add_trunk(ImageLayout.create(Path(folder)), parts, others)
    stored = bundle.manifest.layer(TRUNK_TITLE)
    assert stored is not None
    return bundle.manifest.size_bytes - stored.size + trunk.layer.size


def measure(
    model: Path, bundle: Bundle, tables: dict[str, tuple[DensePart | None, Tensor]], documents: int
) -> tuple[dict[str, dict[str, Any]], int]:
    """Return KL and perplexity of every form, and the number of tokens."""
    published, packed = (load_model(read_outline(model), device="cpu", dtype=torch.float32) for _ in range(2))
    blobs = blobs_of(bundle)
    write_dense_part(packed, bundle.layout, blobs)
    write_sensitive_part(packed, bundle.layout, blobs, packed.outline.linear_names)
    sums, tokens, published_nats = {form: Sums() for form in tables}, 0, 0.0
    for window in windows_of(model, documents):
        expected, targets = log_probabilities(published, window), torch.tensor(window[1:])[:, None]
        published_nats -= float(expected.gather(1, targets).sum(dtype=torch.float64))
        tokens += len(targets)
        for form, (_, table) in tables.items():
            use_table(packed, table)
            found = log_probabilities(packed, window)
            sums[form].kl += divergence(expected, found)
            sums[form].nats -= float(found.gather(1, targets).sum(dtype=torch.float64))
        print(tokens, {form: round(each.kl / tokens, 6) for form, each in sums.items()}, flush=True)
    figures = {
        form: {"kl": each.kl / tokens, "perplexity": math.exp(each.nats / tokens)} for form, each in sums.items()
    }
    figures["16"]["perplexity_as_published"] = math.exp(published_nats / tokens)
    return figures, tokens


def measure_alone(model: Path) -> dict[str, Any]:
    """Return the KL of a model in which nothing but the embedding is quantised, for forms of 8 bits."""
    outline = read_outline(model)
    (name,) = outline.embedding_names
    rows = outline.weights.read(name).float()
    alike, columns = torch.ones_like(rows), rows.shape[1]
    forms = {f"8_g{size}": quantize_rtn(rows, alike, 8, size) for size in (columns, 192, 96, 64)}
    tables = {form: dequantize(table) for form, table in (forms | {"8_symmetric": symmetric(rows)}).items()}
    published, changed = (load_model(outline, device="cpu", dtype=torch.float32) for _ in range(2))
    sums, tokens = dict.fromkeys(tables, 0.0), 0
    for window in windows_of(model, 6)[-5:]:
        expected = log_probabilities(published, window)
        tokens += len(expected)
        for form, table in tables.items():
            use_table(changed, table)
            sums[form] += divergence(expected, log_probabilities(changed, window))
    return {"model": model.name, "tokens": tokens, "kl": {form: total / tokens for form, total in sums.items()}}


def use_table(model: LoadedModel, table: Tensor) -> None:
    """Give the network another embedding, and so another head: they are tied."""
    model.network.get_input_embeddings().weight.data = table  # type: ignore[operator]


def divergence(expected: Tensor, found: Tensor) -> float:
    """Return Σ p (log p − log q), in nats."""
    return float((expected.exp() * (expected - found)).sum(dtype=torch.float64))


def windows_of(model: Path, documents: int) -> list[list[int]]:
    outline = read_outline(model)
    encoder = load_encoder(model, outline.architecture, outline.context_length)
    return evaluation_windows(islice(read_documents(C4, POLICY), documents), encoder)


def blobs_of(bundle: Bundle) -> list[TensorBlob]:
    """Return the bundle's tensor blobs with what its configuration says of them."""
    entries = bundle.config.tensors
    return [
        TensorBlob(layer, tuple(entry for entry in entries if entry.blob == layer.title))
        for layer in bundle.manifest.layers
        if layer.title.endswith(".safetensors")
    ]


@torch.no_grad()
def log_probabilities(model: LoadedModel, window: list[int]) -> Tensor:
    logits: Tensor = model.network(input_ids=torch.tensor([window]), use_cache=False).logits[0, :-1]
    return logits.log_softmax(dim=-1)


if __name__ == "__main__":
    main()
