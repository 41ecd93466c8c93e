"""Stores the tensors of a bundle: one blob per decoder block, the trunk, the sensitive values.

    block-00000.safetensors   quantised parts and 16-bit norms and biases of one block
    trunk.safetensors         embeddings and an untied head, in codes or in 16 bits; final norm
    sensitive.safetensors     <name>.indices, .rank, .values

Every blob is a function of the input alone (no time, no path, no machine), so the same input gives the same digest.
Knows nothing about how the parts were made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cloud_service.pipeline.quantizers.quantize import DensePart
from shared.bundle.config import DenseEntry, QuantizedEntry
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE, TRUNK_TITLE, Descriptor, block_title
from shared.bundle.write import add_tensors
from shared.quantization.codec import QuantizedTensor
from shared.sensitivity_mask import SensitivityMask


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
    entries = tuple(_quantized_entry(name, title, dense, len(masks[name])) for name, dense in dense_parts.items())
    return _add_tensors(layout, title, _named_parts(dense_parts), entries, parameters)


def add_trunk(layout: ImageLayout, embeddings: Mapping[str, DensePart], parameters: Mapping[str, Tensor]) -> TensorBlob:
    """Store the parameters outside the blocks.

    Args:
        layout: Where to.
        embeddings: The token embedding and the head, where they are quantised.
        parameters: What is kept in 16 bits.

    Raises:
        DiskError: The disk is full or not writable.
    """
    entries = tuple(_quantized_entry(name, TRUNK_TITLE, dense, 0) for name, dense in embeddings.items())
    return _add_tensors(layout, TRUNK_TITLE, _named_parts(embeddings), entries, parameters)


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


def _named_parts(dense_parts: Mapping[str, DensePart]) -> dict[str, NDArray[Any]]:
    return {
        f"{name}.{part}": tensor.cpu().numpy()
        for name, dense in dense_parts.items()
        for part, tensor in dense.weight.parts.items()
    }


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
        codebook=_codebook_kind(dense.weight),
        group_size=dense.weight.group_size,
        has_bias=dense.weight.bias is not None,
        sensitive_count=sensitive_count,
        relative_error=dense.relative_error,
        weighted_relative_error=dense.weighted_relative_error,
    )


def _codebook_kind(weight: QuantizedTensor) -> Literal["per_row", "shared", "none"]:
    if weight.lut is None:
        return "none"
    return "per_row" if weight.group_size is None else "shared"
