"""The weight files of a Hugging Face folder: which tensor goes into which, and the bytes before the first tensor.

    8 bytes little-endian N · N bytes JSON {name: {dtype, shape, data_offsets}} · tensor bytes, in the header's order

Costs nothing. Knows nothing about where tensors come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

INDEX_NAME = "model.safetensors.index.json"


class StoredTensor(Protocol):
    """How a tensor lies in a file."""

    @property
    def dtype(self) -> str:
        """Its dtype, as safetensors names it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def size(self) -> int:
        """Its bytes."""


TensorType = TypeVar("TensorType", bound=StoredTensor)


def shards(tensors: Mapping[str, TensorType], most_bytes: int) -> Iterator[dict[str, TensorType]]:
    """Yield the tensors of each file, in order; a file is longer than ``most_bytes`` only where one tensor is."""
    shard: dict[str, TensorType] = {}
    for name, tensor in tensors.items():
        if shard and sum(member.size for member in shard.values()) + tensor.size > most_bytes:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


def shard_header(shard: Mapping[str, StoredTensor]) -> bytes:
    """Return the first bytes of a safetensors file: length of the header, and the header padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in shard.items():
        begin, end = end, end + tensor.size
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
