"""Writes a bundle's blobs and manifest: one blob per decoder block, the trunk, the sensitive values, the documents.

    block-00000.safetensors   quantised parts and 16-bit norms and biases of one block
    trunk.safetensors         embeddings, final norm, an untied head
    sensitive.safetensors     <name>.indices, .rank, .values
    tokenizer.json · generation_config.json · LICENSE · README.md · report.json

Nothing becomes visible: the caller signs the manifest and tags bundle and signature at once. Every blob is a function
of the input alone (no time, no path, no machine), so the same input gives the same digest. Knows nothing about how
the parts were made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloud_service.contained_folder import MAX_DOCUMENT_BYTES, ContainedFolder
from cloud_service.pipeline.model.weight_files import read_json
from cloud_service.pipeline.quantize import DensePart
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import (
    JSON_MEDIA_TYPE,
    REPORT_TITLE,
    SENSITIVE_TITLE,
    TEXT_MEDIA_TYPE,
    TOKENIZER_TITLE,
    TRUNK_TITLE,
    DenseEntry,
    Descriptor,
    QuantizedEntry,
    SourceModel,
    block_title,
)
from shared.bundle.write import add_document, add_tensors
from shared.sensitivity_mask import SensitivityMask

_GENERATION_KEYS = (
    "bos_token_id", "do_sample", "eos_token_id", "max_new_tokens", "min_p", "pad_token_id", "repetition_penalty",
    "temperature", "top_k", "top_p",
)  # fmt: skip
_MAX_DOCUMENT_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorBlob:
    """A stored tensor blob and what the configuration says about it.

    Attributes:
        layer: The blob.
        quantized: Quantised weights in it.
        dense: 16-bit parameters in it.
    """

    layer: Descriptor
    quantized: tuple[QuantizedEntry, ...] = ()
    dense: tuple[DenseEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a form that ``from_json`` reads back."""
        return {
            "layer": json.loads(self.layer.to_bytes()),
            "quantized": [json.loads(entry.to_bytes()) for entry in self.quantized],
            "dense": [json.loads(entry.to_bytes()) for entry in self.dense],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TensorBlob:
        """Return the blob that ``to_json`` described."""
        return cls(
            Descriptor.model_validate_json(json.dumps(record["layer"])),
            tuple(QuantizedEntry.model_validate_json(json.dumps(entry)) for entry in record["quantized"]),
            tuple(DenseEntry.model_validate_json(json.dumps(entry)) for entry in record["dense"]),
        )


def add_block(
    layout: ImageLayout,
    index: int,
    dense_parts: Mapping[str, DensePart],
    masks: Mapping[str, SensitivityMask],
    parameters: Mapping[str, Tensor],
) -> TensorBlob:
    """Store one decoder block.

    Raises:
        DiskError: The disk is full or not writable.
    """
    title = block_title(index)
    tensors = {
        f"{name}.{part}": tensor.cpu().numpy()
        for name, dense in dense_parts.items()
        for part, tensor in dense.weight.parts.items()
    }
    entries = tuple(_quantized_entry(name, title, dense, len(masks[name])) for name, dense in dense_parts.items())
    return _add_tensors(layout, title, tensors, entries, parameters)


def add_trunk(layout: ImageLayout, parameters: Mapping[str, Tensor]) -> TensorBlob:
    """Store the parameters outside the blocks.

    Raises:
        DiskError: The disk is full or not writable.
    """
    return _add_tensors(layout, TRUNK_TITLE, {}, (), parameters)


def add_sensitive(
    layout: ImageLayout, masks: Mapping[str, SensitivityMask], values: Mapping[str, NDArray[np.float16]]
) -> TensorBlob:
    """Store masks and sensitive values; a tensor without any is left out.

    Raises:
        DiskError: The disk is full or not writable.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name, mask in masks.items():
        if len(mask):
            tensors |= {f"{name}.indices": mask.indices, f"{name}.rank": mask.rank, f"{name}.values": values[name]}
    return TensorBlob(add_tensors(layout, SENSITIVE_TITLE, tensors))


def add_documents(
    layout: ImageLayout, folder: Path, *, tokenizer_json: bytes, report: Mapping[str, Any], model_card: str
) -> list[Descriptor]:
    """Store the documents of the bundle, in the order of their titles.

    Args:
        layout: Where to.
        folder: The checkpoint: its licence and generation settings are taken over.
        tokenizer_json: The tokenizer.
        report: What was measured.
        model_card: Text of README.md.

    Raises:
        UnsupportedModel: The licence or the generation settings cannot be read inside the folder.
        DiskError: The disk is full or not writable.
    """
    documents = {
        TOKENIZER_TITLE: (tokenizer_json, JSON_MEDIA_TYPE),
        REPORT_TITLE: (json.dumps(report, sort_keys=True, indent=1).encode(), JSON_MEDIA_TYPE),
        "README.md": (model_card.encode(), TEXT_MEDIA_TYPE),
    }
    files = ContainedFolder(folder)
    if (settings := _generation_settings(files)) is not None:
        documents["generation_config.json"] = (settings, JSON_MEDIA_TYPE)
    for name in (name for name in files.names() if name.startswith("LICENSE")):
        licence = files.read(name, max_bytes=MAX_DOCUMENT_BYTES)
        if len(licence) <= _MAX_DOCUMENT_BYTES:
            documents["LICENSE"] = (licence, TEXT_MEDIA_TYPE)
    return [add_document(layout, title, data, media) for title, (data, media) in sorted(documents.items())]


def license_of(folder: Path) -> str | None:
    """Return the licence that the front matter of the checkpoint's README.md states, or None.

    Raises:
        UnsupportedModel: README.md is not a regular file inside the folder, or is too long.
    """
    files = ContainedFolder(folder)
    if not files.has("README.md"):
        return None
    card = files.read("README.md", max_bytes=MAX_DOCUMENT_BYTES)
    if len(card) > _MAX_DOCUMENT_BYTES:
        return None
    text = card.decode("utf-8", errors="replace").replace("\r\n", "\n")
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    stated = dict(
        re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", front[1] if front else "", re.MULTILINE)
    )
    return stated.get("license_name") if stated.get("license") == "other" else stated.get("license")


def model_card(source: SourceModel, report: Mapping[str, Any]) -> str:
    """Return the text of the bundle's README.md."""
    mask, quantizer, perplexity = report["mask"], report["quantizer"], report["perplexity"]
    lines = [
        f"# {source.id}, prepared for zo-device",
        "",
        f"* Base model: {source.id}" + (f" at {source.revision}" if source.revision else ""),
        f"* Licence of the base model: {source.license or 'not stated; see the base model'}",
        f"* Dense part: {quantizer['bits']}-bit `{quantizer['method']}`"
        + (f", errors compensated by `{quantizer['compensation']}`" if quantizer["compensation"] else ""),
        f"* Sensitive part: {mask['sensitive_count']} weights in float16, chosen by {mask['source']} ({mask['scope']})",
        f"* Calibration text: {mask['calibration_text']}, {mask['calibration_sequences']} sequences",
    ]
    if perplexity:
        lines.append(
            f"* Perplexity on {perplexity['documents']} held-out documents of {perplexity['text']}: "
            f"{perplexity['16bit']:.3f} in 16 bits, {perplexity['bundle']:.3f} as this bundle"
        )
    return "\n".join([*lines, "", "Made for `zo-device tune`: only the sensitive values are trained.", ""])


def _add_tensors(
    layout: ImageLayout,
    title: str,
    quantized_parts: Mapping[str, NDArray[Any]],
    entries: Iterable[QuantizedEntry],
    parameters: Mapping[str, Tensor],
) -> TensorBlob:
    dense = {name: tensor.to(torch.float16).cpu().numpy() for name, tensor in parameters.items()}
    layer = add_tensors(layout, title, {**quantized_parts, **dense})
    described = (DenseEntry(name=name, shape=list(tensor.shape), blob=title) for name, tensor in dense.items())
    return TensorBlob(layer, tuple(entries), tuple(described))


def _quantized_entry(name: str, title: str, dense: DensePart, sensitive_count: int) -> QuantizedEntry:
    return QuantizedEntry(
        name=name,
        shape=dense.weight.shape,
        blob=title,
        bits=dense.weight.bits,  # type: ignore[arg-type]
        codebook="none" if dense.weight.lut is None else "per_row",
        group_size=dense.weight.group_size,
        has_bias=dense.weight.bias is not None,
        sensitive_count=sensitive_count,
        relative_error=dense.relative_error,
        weighted_relative_error=dense.weighted_relative_error,
    )


def _generation_settings(folder: ContainedFolder) -> bytes | None:
    if not folder.has("generation_config.json"):
        return None
    stated = read_json(folder, "generation_config.json")
    settings = {key: value for key, value in stated.items() if key in _GENERATION_KEYS and _is_number(value)}
    return json.dumps(settings, sort_keys=True).encode()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, list) and all(type(item) is int for item in value))
