"""What calibration on the model's own text costs a real bundle, beside calibration on C4.

    ZO_DATA_DIR=../shared/data python tests/benchmarks/self_calibration.py --model FOLDER --keep FOLDER [--windows 24]

``--model`` is a Hugging Face folder of SmolLM2-135M-Instruct. It is prepared twice with the same settings, on sequences
of C4 and on as many that it writes itself; the bundles stay in ``--keep``, where a second run finds them. ``overlap``
is the share of sensitive weights that both chose. ``kl`` is the mean divergence, in nats per token, of the bundle's
predictions from those of the model as published, on WikiText-2, which neither was calibrated on. Writes
``results/self_calibration.json`` and ``real.smollm2.self_calibration_kl_over_c4``, the ratio of the two.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from embedding_bits import C4, DATA, POLICY, blobs_of, divergence, log_probabilities, prepared
from recording import record_headlines, write_result

from cloud_service.pipeline.calibration.documents import read_documents
from cloud_service.pipeline.evaluation.perplexity import evaluation_windows
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from cloud_service.pipeline.model.tokenization import load_encoder
from cloud_service.pipeline.quantizers.bundle_weights import write_dense_part, write_sensitive_part
from cloud_service.sources import TextSource
from shared.bundle.read import Bundle

SEQUENCES, TOKENS = 32, 256
HELD_OUT = TextSource(DATA / "text" / "wikitext-2" / "test.txt")
TEXTS = {"c4": str(C4.path), "self": "self"}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=24)
    arguments = parser.parse_args()
    bundles = {}
    for name, text in TEXTS.items():
        calibration = {"text": text, "sequences": SEQUENCES, "tokens_per_sequence": TOKENS}
        request = {"model": str(arguments.model), "calibration": calibration}
        bundles[name] = prepared(arguments.keep / name, request)
    figures, tokens = measure(arguments.model, bundles, arguments.windows)
    ratio = figures["self"]["kl"] / figures["c4"]["kl"]
    about = {"model": arguments.model.name, "sequences": SEQUENCES, "tokens_per_sequence": TOKENS}
    found: dict[str, Any] = {"overlap": overlap(bundles["c4"], bundles["self"]), "tokens": tokens, "texts": figures}
    path = write_result("self_calibration", about | found | {"kl_ratio": ratio})
    record_headlines(path, {"real.smollm2.self_calibration_kl_over_c4": (round(ratio, 3), "x")})
    print(path.read_text())


def overlap(first: Bundle, second: Bundle) -> float:
    """Return the share of the first bundle's sensitive weights that the second has too."""
    shared = total = 0
    for entry in first.config.block_tensors:
        ours, theirs = (set(bundle.sensitive(entry.name)[0].indices.tolist()) for bundle in (first, second))
        shared, total = shared + len(ours & theirs), total + len(ours)
    return shared / total


def measure(model: Path, bundles: dict[str, Bundle], count: int) -> tuple[dict[str, dict[str, float]], int]:
    """Return each bundle's KL, and the number of tokens."""
    outline = read_outline(model)
    encoder = load_encoder(model, outline.architecture, outline.context_length)
    windows = evaluation_windows(islice(read_documents(HELD_OUT, POLICY), 10 * count), encoder)[:count]
    published = load_model(outline, device="cpu", dtype=torch.float32)
    packed = {name: unpacked(model, bundle) for name, bundle in bundles.items()}
    sums, tokens = dict.fromkeys(bundles, 0.0), 0
    for window in windows:
        expected = log_probabilities(published, window)
        tokens += len(expected)
        for name, network in packed.items():
            sums[name] += divergence(expected, log_probabilities(network, window))
    return {name: {"kl": total / tokens} for name, total in sums.items()}, tokens


def unpacked(model: Path, bundle: Bundle) -> LoadedModel:
    """Return the network with the bundle's weights."""
    network = load_model(read_outline(model), device="cpu", dtype=torch.float32)
    blobs = blobs_of(bundle)
    write_dense_part(network, bundle.layout, blobs)
    write_sensitive_part(network, bundle.layout, blobs, network.outline.linear_names)
    return network


if __name__ == "__main__":
    main()
