"""Report documents of models that were never prepared: any number of blocks, figures written down here."""

from __future__ import annotations

from typing import Any

from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from cloud_service.pipeline.report.document import FisherFigures, report_document
from cloud_service.pipeline.report.run_record import PeakBytes, RunRecord, StageRecord
from shared.bundle.config import DenseEntry, MaskProvenance, QuantizedEntry, Quantizer, SourceModel
from shared.bundle.manifest import TENSORS_MEDIA_TYPE, Descriptor

PROJECTIONS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (172, 64),
    "mlp.up_proj": (172, 64),
    "mlp.down_proj": (64, 172),
}
SPARSITY = 0.01
HEADER_BYTES = 1000
DIGEST = "sha256:" + "ab" * 32


def example_report(
    blocks: int = 2,
    *,
    scope: str = "global",
    overlap: float | None = 0.8,
    increase: float | None = 0.02,
    worst: float | None = None,
    text: str = "c4",
) -> dict[str, Any]:
    """A report of a model of llama's shape, 4-bit ``lut``.

    Args:
        blocks: Number of decoder blocks.
        scope: Scope of the mask.
        overlap: Split-half overlap.
        increase: Relative increase of perplexity; None for a report without evaluation.
        worst: Weighted error of block 0's ``q_proj``; every other weight has 0.005.
        text: Name of the calibration text.
    """
    entries = [
        _entry(block, projection, shape, worst if worst is not None and (block, position) == (0, 0) else 0.005)
        for block in range(blocks)
        for position, (projection, shape) in enumerate(PROJECTIONS.items())
    ]
    dense = [
        DenseEntry(name="model.embed_tokens.weight", shape=[512, 64], blob="trunk.safetensors"),
        DenseEntry(name="model.norm.weight", shape=[64], blob="trunk.safetensors"),
        DenseEntry(name="lm_head.weight", shape=[512, 64], blob="trunk.safetensors"),
    ]
    parts = sum(4 * row * column // 8 + 32 * row for row, column in (entry.shape for entry in entries))
    size = parts + 10 * sum(entry.sensitive_count for entry in entries) + 2 * (2 * 512 * 64 + 64) + HEADER_BYTES
    layer = Descriptor(mediaType=TENSORS_MEDIA_TYPE, digest=DIGEST, size=size)
    mass = {entry.name: 0.05 + 0.4 * index / len(entries) for index, entry in enumerate(entries)}
    fractions = [10 ** (-5 + step / 8) for step in range(41)]
    return report_document(
        SourceModel(id="example/a-model", revision="0123456789" * 4, license="apache-2.0"),
        MaskProvenance(
            source="fisher",
            scope=scope,  # type: ignore[arg-type]
            sparsity=SPARSITY,
            sensitive_count=sum(entry.sensitive_count for entry in entries),
            calibration_text=text,
            calibration_sequences=128,
            calibration_tokens_per_sequence=512,
            calibration_seed=0,
            calibration_digest=DIGEST,
            split_half_overlap=overlap,
            gradient_mass=0.23,
        ),
        Quantizer(method="lut", bits=4),
        FisherFigures(overlap, 0.23, mass, fractions, [f**0.3 for f in fractions], [0.1] * len(fractions)),
        [TensorBlob(layer, tuple(entries), tuple(dense))],
        None
        if increase is None
        else {
            "text": text,
            "documents": 200,
            "tokens": 81234,
            "dtype": "float16",
            "16bit": 10.0,
            "bundle": 10.0 * (1 + increase),
            "dense_only": 10.0 * (1 + 2 * increase),
        },
        producer="zo-device 0.1.0",
    )


def example_run(bundle_bytes: int = 20_000_000) -> RunRecord:
    """A run with a plan for most of what it did."""
    return RunRecord(
        machine="Example Processor with a rather long marketing name @ 2.60GHz, 16 cores",
        device="Example Accelerator 80GB",
        torch_version="2.13.0",
        transformers_version="5.23.0",
        stages=(
            StageRecord("resolving", 1.4),
            StageRecord("calibrating", 3723.0, 3600.0),
            StageRecord("quantizing", 312.0, 300.0),
        ),
        accelerator=PeakBytes(planned=24 << 30, measured=23 << 30),
        host=PeakBytes(measured=3 << 30),
        accumulators="accelerator",
        passes=2,
        recomputes_activations=True,
        launcher="ray",
        workers=4,
        bundle_digest=DIGEST,
        bundle_bytes=bundle_bytes,
    )


def _entry(block: int, projection: str, shape: tuple[int, int], error: float) -> QuantizedEntry:
    elements = shape[0] * shape[1]
    return QuantizedEntry(
        name=f"model.layers.{block}.{projection}.weight",
        shape=shape,
        blob=f"block-{block:05d}.safetensors",
        bits=4,
        codebook="per_row",
        sensitive_count=round(elements * SPARSITY * (0.25 + 1.5 * ((block * 7 + len(projection)) % 11) / 10)),
        relative_error=0.007,
        weighted_relative_error=error,
    )
