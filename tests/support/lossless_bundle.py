"""A bundle that holds a real checkpoint without loss: 8-bit codes with one codebook per row.

A row of at most 256 columns has at most 256 distinct values, so its codebook can hold all of them exactly.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from shared.architecture import family_of, safe_config
from shared.bundle.config import (
    BundleConfig,
    DenseEntry,
    MaskProvenance,
    MemoryEstimates,
    ParameterCounts,
    QuantizedEntry,
    Quantizer,
    SourceModel,
    TokenizerSettings,
)
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import JSON_MEDIA_TYPE, SENSITIVE_TITLE, TOKENIZER_TITLE, TRUNK_TITLE, block_title
from shared.bundle.read import Bundle, read_bundle
from shared.bundle.write import add_document, add_manifest, add_tensors


def make_lossless_bundle(root: Path, checkpoint: Path) -> Bundle:
    """Publish a small fp16 Hugging Face folder without loss; no weight is sensitive."""
    fields = safe_config(json.loads((checkpoint / "config.json").read_text()))
    prefix = family_of(fields).decoder_blocks + "."
    layout = ImageLayout.create(root)
    files: dict[str, dict[str, np.ndarray]] = {TRUNK_TITLE: {}}
    entries, dense = [], []
    for name, weight in safetensors.torch.load_file(checkpoint / "model.safetensors").items():
        is_inside = name.startswith(prefix)
        title = block_title(int(name.removeprefix(prefix).split(".")[0])) if is_inside else TRUNK_TITLE
        tensors = files.setdefault(title, {})
        if is_inside and weight.dim() == 2:
            codes, lut = row_codebooks(weight)
            tensors |= {f"{name}.codes": codes, f"{name}.lut": lut}
            entries.append(_entry(name, (weight.shape[0], weight.shape[1]), title))
        elif not (fields.get("tie_word_embeddings") and name == "lm_head.weight"):
            tensors[name] = weight.half().numpy()
            dense.append(DenseEntry(name=name, shape=list(weight.shape), blob=title))
    layers = [add_tensors(layout, title, tensors) for title, tensors in files.items()]
    layers.append(add_tensors(layout, SENSITIVE_TITLE, {}))
    tokenizer = (checkpoint / "tokenizer.json").read_bytes()
    layers.append(add_document(layout, TOKENIZER_TITLE, tokenizer, JSON_MEDIA_TYPE))
    manifest = add_manifest(layout, _config(fields, entries, dense), layers)
    return read_bundle(layout, manifest.digest)


def row_codebooks(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return codes uint8 (rows, columns) and codebooks float16 (rows, 256) that give ``weight`` back exactly."""
    codes = np.empty(weight.shape, np.uint8)
    lut = np.zeros((weight.shape[0], 256), np.float16)
    for row, values in enumerate(weight.half().numpy()):
        distinct, codes[row] = np.unique(values, return_inverse=True)
        lut[row, : distinct.size] = distinct
    return codes, lut


def _entry(name: str, shape: tuple[int, int], blob: str) -> QuantizedEntry:
    return QuantizedEntry(
        name=name,
        shape=shape,
        blob=blob,
        bits=8,
        codebook="per_row",
        sensitive_count=0,
        relative_error=0,
        weighted_relative_error=0,
    )


def _config(fields: dict[str, object], entries: list[QuantizedEntry], dense: list[DenseEntry]) -> BundleConfig:
    return BundleConfig(
        producer="tests",
        source=SourceModel(id="tests/lossless"),
        architecture=fields,
        tokenizer=TokenizerSettings(prepend_bos=True, bos_token_id=1, eos_token_ids=[2], context_length=512),
        mask=MaskProvenance(
            source="random",
            scope="per_tensor",
            sparsity=0,
            sensitive_count=0,
            calibration_text="none",
            calibration_sequences=0,
            calibration_tokens_per_sequence=0,
            calibration_seed=0,
            calibration_digest="sha256:" + "0" * 64,
        ),
        quantizer=Quantizer(method="lossless", bits=8),
        tensors=entries,
        dense_parameters=dense,
        parameter_counts=ParameterCounts(total=0, quantized=0, sensitive=0, dense=0),
        memory=MemoryEstimates(weights_bytes=0, workspace_bytes=0),
    )
