"""Splits and quantises a model, one decoder block after another, and stores each block as it is done.

    W = w_sparse + w_dense        w_sparse: the masked weights in float16        w_dense: Q(everything else)

    block-<n>.json                what the stored blob of a finished block holds; the block is not made again
    sensitive-<n>.safetensors     its sensitive values

The blocks do not depend on how the embedding is stored: bundles of one model that differ only there share their blobs.
The originals are read from the checkpoint block by block. Costs one weight in float32 with its Fisher diagonal and the
quantiser's scratch (small ones together: ``weight_groups``), and one block's quantised parts; with error compensation
also the network, from the first block that is not restored (``published_inputs``). Knows nothing about how masks,
diagonals or quantisers come about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from cloud_service.pipeline.fisher.select_sensitive import Masks
from cloud_service.pipeline.model.gguf.source_codes import SourceCodes
from cloud_service.pipeline.model.load_model import ModelOutline
from cloud_service.pipeline.quantizers.embeddings import quantize_embedding
from cloud_service.pipeline.quantizers.published_inputs import PublishedInputs
from cloud_service.pipeline.quantizers.quantize import DensePart, Original, quantize_unmasked
from cloud_service.pipeline.quantizers.tensor_blobs import TensorBlob, add_block, add_sensitive, add_trunk
from cloud_service.pipeline.quantizers.weight_groups import groups_at_once, weight_groups
from cloud_service.pipeline.workspace import Workspace
from shared.api import EmbeddingBits, QuantizerSpec
from shared.bundle.layout import ImageLayout


def split_blocks(
    outline: ModelOutline,
    masks: Masks,
    fisher: Mapping[str, Tensor],
    spec: QuantizerSpec,
    embedding_bits: EmbeddingBits,
    *,
    layout: ImageLayout,
    workspace: Workspace,
    device: str,
    after_block: Callable[[int], None],
    inputs: PublishedInputs | None = None,
    source_codes: SourceCodes | None = None,
) -> list[TensorBlob]:
    """Store every block, the trunk and the sensitive values, and return their blobs in that order.

    Args:
        outline: The model.
        masks: The mask of every linear weight.
        fisher: The Fisher diagonal of every linear weight, float32; may load each as it is asked for.
        spec: The quantiser of the blocks.
        embedding_bits: Bits of the token embedding and the head.
        layout: Where the blobs go.
        workspace: Knows the blocks that are done.
        device: Torch device to quantise on.
        after_block: Told the number of blocks done; may raise to stop.
        inputs: What enters the blocks; needed where ``spec`` asks for compensation, else None.
        source_codes: Codes that weights already have; needed where ``spec`` asks for the source's, else None.

    Raises:
        UnsupportedModel: A weight is damaged.
        DiskError: The disk is full or not writable; what was done is kept.
    """
    blobs: list[TensorBlob] = []
    values: dict[str, Tensor] = {}
    for block in range(outline.block_count):
        blob = _restored(layout, workspace, block)
        if blob is None:
            moments = inputs.second_moments(block) if inputs else {}
            blob = _split_block(outline, block, masks, fisher, spec, moments, source_codes, layout, workspace, device)
        blobs.append(blob)
        block_values = workspace.read_tensors(f"sensitive-{block:05d}") or {}
        if inputs:
            inputs.advance(block, layout, blob, masks, block_values)
        values |= block_values
        after_block(block + 1)
    sensitive = {name: tensor.numpy() for name, tensor in values.items()}
    return [*blobs, _add_trunk(outline, embedding_bits, layout), add_sensitive(layout, masks, sensitive)]


def missing_bundle_bytes(
    outline: ModelOutline, embedding_bits: EmbeddingBits, layout: ImageLayout, workspace: Workspace
) -> int:
    """Return about how much disk space ``split_blocks`` still needs: a byte per weight of the blocks not stored.

    The trunk is made again each time: scales and biases add at most a byte to what eight codes take.
    """
    missing = (block for block in range(outline.block_count) if _restored(layout, workspace, block) is None)
    blocks = sum(prod(outline.shapes[name]) for block in missing for name in outline.members(block))
    embeddings = sum(prod(outline.shapes[name]) for name in outline.embedding_names)
    others = sum(prod(outline.shapes[name]) for name in outline.trunk) - embeddings
    return blocks + 2 * others + embeddings * min(16, embedding_bits + 1) // 8


def _add_trunk(outline: ModelOutline, embedding_bits: EmbeddingBits, layout: ImageLayout) -> TensorBlob:
    embeddings: dict[str, DensePart] = {}
    if embedding_bits != 16:
        for name in outline.embedding_names:
            embeddings[name] = quantize_embedding(outline.weights.read(name), embedding_bits)
    others = {name: outline.weights.read(name) for name in outline.trunk if name not in embeddings}
    return add_trunk(layout, embeddings, others)


def _restored(layout: ImageLayout, workspace: Workspace, block: int) -> TensorBlob | None:
    record = workspace.read_json(f"block-{block:05d}")
    blob = TensorBlob.from_json(record) if record else None
    return blob if blob is not None and layout.has_blob(blob.layer.digest) else None


def _split_block(
    outline: ModelOutline,
    block: int,
    masks: Masks,
    fisher: Mapping[str, Tensor],
    spec: QuantizerSpec,
    moments: Mapping[str, Tensor],
    source_codes: SourceCodes | None,
    layout: ImageLayout,
    workspace: Workspace,
    device: str,
) -> TensorBlob:
    shapes = {name: outline.shapes[name] for name in outline.block_linears[block]}
    coded = {name for name in shapes if source_codes and source_codes.type_of(name)}

    def read_groups() -> Iterator[dict[str, Original]]:
        for names in weight_groups(shapes, moments, alone=coded):
            weights = {name: outline.weights.read(name).to(device, torch.float32) for name in names}
            yield {name: Original(weights[name], fisher[name].to(device), masks[name]) for name in names}

    def quantized(group: dict[str, Original]) -> list[tuple[str, DensePart, Tensor]]:
        name, original = next(iter(group.items()))
        codes = source_codes.read(name, device) if source_codes else None
        moment = moments[name].to(device) if moments else None
        parts = [original.beside(codes)] if codes else quantize_unmasked(list(group.values()), spec, moment)
        return [(name, part, group[name].masked_values) for name, part in zip(group, parts, strict=True)]

    at_once = groups_at_once(shapes, device)
    with ThreadPoolExecutor(at_once) as pool:
        done = [made for group in (pool.map if at_once > 1 else map)(quantized, read_groups()) for made in group]
    dense_parts = {name: part for name, part, _ in done}
    values = {name: sensitive for name, _, sensitive in done}
    others = {name: outline.weights.read(name) for name in outline.members(block) if name not in masks}
    workspace.write_tensors(f"sensitive-{block:05d}", values, {})
    blob = add_block(layout, block, dense_parts, masks, others)
    workspace.write_json(f"block-{block:05d}", blob.to_json())
    return blob
