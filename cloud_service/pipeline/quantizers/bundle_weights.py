"""Writes a bundle's weights into the network, read back from the stored blobs: what is evaluated is what is published.

    W = dequantise(codes)              the dense part alone
    W[index] = value                   the sensitive part on top

Costs one decoded weight at a time. Knows nothing about how either part was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cloud_service.pipeline.model.load_model import LoadedModel
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob
from shared.bundle.config import QuantizedEntry
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE
from shared.quantization.codec import QuantizedTensor, dequantize


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """What a bundle has in place of the checkpoint's weights, written into the network part by part.

    Attributes:
        model: The network; the weights of a block must be in memory when it is written.
        layout: Where the blobs lie.
        blobs: Those of the blocks, in order, then the others.
        has_sensitive_part: Whether the sensitive values are written; else the dense part alone.
    """

    model: LoadedModel
    layout: ImageLayout
    blobs: Sequence[TensorBlob]
    has_sensitive_part: bool

    def write_trunk(self) -> None:
        """Write what is quantised beside the blocks: an embedding, an output matrix."""
        write_dense_part(self.model, self.layout, self.blobs[self.model.outline.block_count :])

    def write_block(self, index: int) -> None:
        """Write a block, by its index."""
        write_dense_part(self.model, self.layout, [self.blobs[index]])
        if self.has_sensitive_part:
            names = self.model.outline.block_linears[index]
            write_sensitive_part(self.model, self.layout, self.blobs, names)


def write_dense_part(model: LoadedModel, layout: ImageLayout, blobs: Iterable[TensorBlob]) -> None:
    """Set every quantised weight of the network to its decoded codes; masked positions included."""
    parameters = model.parameters
    for blob in blobs:
        parts = safetensors.torch.load_file(layout.blob_path(blob.layer.digest)) if blob.quantized else {}
        for entry in blob.quantized:
            parameters[entry.name].data.copy_(dequantize(_quantized(entry, parts)))


def write_sensitive_part(
    model: LoadedModel, layout: ImageLayout, blobs: Iterable[TensorBlob], names: Iterable[str]
) -> None:
    """Replace the masked weights of these names by the sensitive values."""
    blob = next(blob for blob in blobs if blob.layer.title == SENSITIVE_TITLE)
    with safetensors.safe_open(layout.blob_path(blob.layer.digest), "pt") as parts:
        stored = set(parts.keys())
        for name in names:
            if f"{name}.indices" not in stored:
                continue  # a weight without sensitive values is left out
            values = (parts.get_tensor(f"{name}.indices"), parts.get_tensor(f"{name}.values"))
            write_values(model, {name: values})


def write_values(model: LoadedModel, values: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Replace weights of the network: by name, flat positions (k,) and the values there (k,), on any device."""
    parameters = model.parameters
    for name, (index, value) in values.items():
        weight = parameters[name].data.view(-1)
        weight[index.to(weight.device, torch.int64)] = value.to(weight.device, weight.dtype)


def _quantized(entry: QuantizedEntry, parts: dict[str, Tensor]) -> QuantizedTensor:
    return QuantizedTensor(
        codes=parts[f"{entry.name}.codes"],
        in_features=entry.shape[1],
        bits=entry.bits,
        lut=parts.get(f"{entry.name}.lut"),
        scale=parts.get(f"{entry.name}.scale"),
        bias=parts.get(f"{entry.name}.bias"),
        group_size=entry.group_size,
    )
