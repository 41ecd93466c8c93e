"""How many calibration sequences are enough: mask quality and perplexity against N, on a real model.

    ZO_DATA_DIR=../shared/data OMP_NUM_THREADS=2 python tests/benchmarks/calibration_size.py [--model picollama]

For N = 16, 64, 128 and 512 sequences of 512 tokens of C4 (each set contains the smaller ones): the overlap of the masks
of the two halves; the share of the mask that is also in the mask of N = 512; and the perplexity on C4 documents 0 … 199
of the bundle (the default quantiser, 0.1 % sensitive), whose mask and codebooks follow that Fisher diagonal; the second
moments of error compensation are those of 128 sequences throughout. Writes results/calibration_size.json and the
headlines ``mask.split_half_overlap.n<N>``. Takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from perplexity import (
    DATA,
    MODELS,
    SPARSITY,
    Subject,
    calibrate,
    divergence,
    estimate,
    ours,
    perplexities,
    prepare_subject,
    sixteen_bit_predictions,
    write_quantised,
)
from recording import record_headlines, write_result

from cloud_service.pipeline.fisher.select_sensitive import overlap
from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.model.tokenization import load_encoder
from shared.api import QuantizerSpec

SIZES = (16, 64, 128, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="picollama")
    model = parser.parse_args().model
    result = measure(model)
    path = write_result("calibration_size", {"model": MODELS[model], "sparsity": SPARSITY, **result})
    overlaps = {size: figures["split_half_overlap"] for size, figures in result["sizes"].items()}
    record_headlines(path, {f"mask.split_half_overlap.n{size}": (value, "share") for size, value in overlaps.items()})
    print(path.read_text())


def measure(model: str) -> dict[str, Any]:
    folder = DATA / "models" / MODELS[model]
    outline = read_outline(folder)
    encoder = load_encoder(folder, outline.architecture, outline.context_length)
    largest = calibrate(encoder, max(SIZES))
    subject = prepare_subject(folder)
    reference = sixteen_bit_predictions(subject)
    of_subject = {len(subject.calibration): (subject.fisher, subject.masks, subject.mask_quality)}
    estimates = {size: of_subject.get(size) or estimate(folder, largest.part(slice(size))) for size in SIZES}
    best = estimates[max(SIZES)][1]
    sizes = {}
    for size, (fisher, masks, quality) in estimates.items():
        sized: Subject = dataclasses.replace(subject, fisher=fisher, masks=masks)
        write_quantised(sized, ours(QuantizerSpec()), masks)
        sizes[size] = quality | {
            "share_in_largest": overlap(masks, best),
            "perplexity_c4": perplexities(sized, "c4")["c4"],
            "kl_nats": divergence(sized, reference),
        }
        print(size, json.dumps(sizes[size]), flush=True)
    return {"tokens": largest.tokens.shape[1], "sizes": sizes}


if __name__ == "__main__":
    main()
