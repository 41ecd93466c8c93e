"""Writes decoded weights as the safetensors files of a Hugging Face folder, a few megabytes at a time.

Each weight is rounded once to 16 bits, or kept in float32. Costs a piece of a weight; of a family whose checkpoints
hold weights the other way round, one weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from device_client.export.weights import DecodedWeights
from shared.bundle.config import BundleConfig
from shared.checkpoint_files import INDEX_NAME, shard_header, shards
from shared.errors import UnsupportedModel
from shared.model_families import ModelFamily

DTYPES = {
    "float16": (torch.float16, "F16"),
    "bfloat16": (torch.bfloat16, "BF16"),
    "float32": (torch.float32, "F32"),
}
_FILE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class _Written:
    """A tensor of a file: the parameter that it holds, and how."""

    parameter: str
    dtype: str
    shape: tuple[int, ...]
    is_transposed: bool
    size: int


def stored_names(family: ModelFamily, parameters: list[str]) -> dict[str, str]:
    """Return parameter → name in checkpoints, which differ for a few families."""
    stored = {name: stored for stored, name in family.renamed.items()}
    return {name: stored.get(name, name) for name in parameters}


def checkpoint_bytes(weights: DecodedWeights, dtype_name: str) -> int:
    """Return what the weight files will take, but for their headers."""
    return DTYPES[dtype_name][0].itemsize * sum(prod(shape) for shape in weights.shapes.values())


def write_weight_files(
    folder: Path,
    weights: DecodedWeights,
    config: BundleConfig,
    family: ModelFamily,
    dtype_name: str,
    advance: Callable[[float], None],
    *,
    file_bytes: int = _FILE_BYTES,
) -> None:
    """Write ``model.safetensors``, or several files and their index.

    Args:
        folder: Where to.
        weights: What.
        config: Of the bundle.
        family: Of the model.
        dtype_name: One of ``DTYPES``.
        advance: Receives the bytes of each piece that was written.
        file_bytes: Length of a file, if no single weight is longer.

    Raises:
        UnsupportedModel: A weight is not finite in that dtype.
    """
    dtype, label = DTYPES[dtype_name]
    turned = {entry.name for entry in config.block_tensors} if family.stores_transposed else set()
    names = stored_names(family, list(weights.shapes))
    tensors = {
        names[parameter]: _Written(
            parameter,
            label,
            shape[::-1] if parameter in turned else shape,
            is_transposed=parameter in turned,
            size=dtype.itemsize * prod(shape),
        )
        for parameter, shape in weights.shapes.items()
    }
    files = list(shards(tensors, file_bytes))
    places: dict[str, str] = {}
    for number, shard in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with (folder / name).open("xb") as file:
            file.write(shard_header(shard))
            for tensor in shard.values():
                for piece in _pieces(weights, tensor):
                    data = _rounded(piece, dtype, tensor.parameter)
                    file.write(data)
                    advance(len(data))
        places |= dict.fromkeys(shard, name)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors.values())}, "weight_map": places}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")


def _pieces(weights: DecodedWeights, tensor: _Written) -> Iterator[Tensor]:
    if tensor.is_transposed:
        yield weights.whole(tensor.parameter).T
    else:
        yield from weights.pieces(tensor.parameter)


def _rounded(piece: Tensor, dtype: torch.dtype, name: str) -> bytes:
    rounded = piece.to(dtype).contiguous()
    if not bool(torch.isfinite(rounded).all()):
        largest = float(piece.abs().max())
        raise UnsupportedModel(
            f"{name} holds {largest:g}, which {str(dtype).removeprefix('torch.')} cannot hold",
            needed="finite weights",
            next_step="--dtype bfloat16, which has the range of float32"
            if dtype == torch.float16
            else "choose another run: its values have diverged",
        )
    return rounded.view(torch.uint8).numpy().tobytes()
