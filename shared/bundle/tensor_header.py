"""The header of a safetensors file, checked before anything is mapped or loaded.

    8 bytes little-endian N · N bytes JSON {name: {dtype, shape, data_offsets: [begin, end]}} · tensor bytes

The safetensors library checks most of this too; here every fault has its own typed error and nothing is allocated from
a number that was not checked. Only the three dtypes of our format are allowed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import BlobTruncated, InvalidTensorHeader, LimitExceeded, TensorOverlap

MAX_HEADER_BYTES = 1024 * 1024
_PULL_AGAIN = "zo-device pull"
DTYPES: dict[str, np.dtype[np.generic]] = {
    "U8": np.dtype("u1"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
}


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies: absolute byte range in the file, dtype name and shape."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorSlot]:
    """Return the tensors of a safetensors file by name.

    Raises:
        BlobTruncated: The file is shorter than its header says.
        LimitExceeded: The header is longer than 1 MiB.
        InvalidTensorHeader: The header is no JSON of the expected form, or dtype, shape and range disagree.
        TensorOverlap: Two tensors overlap, or bytes belong to none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise BlobTruncated(f"{path.name}: {size} bytes", needed="at least 8")
        if length > MAX_HEADER_BYTES:
            raise LimitExceeded(f"{path.name}: header of {length} bytes", needed=f"at most {MAX_HEADER_BYTES}")
        raw = file.read(length)
    if len(raw) != length:
        raise BlobTruncated(f"{path.name}: {size} bytes", needed=f"a header of {length} bytes")
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidTensorHeader(f"{path.name}: header is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidTensorHeader(f"{path.name}: header is no JSON object")
    start = 8 + length
    slots = {name: _slot(path, name, entry, start) for name, entry in fields.items() if name != "__metadata__"}
    _check_ranges(path, slots, start, size)
    return slots


def read_pieces(path: Path, slot: TensorSlot, piece_bytes: int = 4 << 20) -> Iterator[NDArray[np.generic]]:
    """Yield one tensor's values in order, flat; each piece is valid until the next one is asked for.

    Args:
        path: A safetensors file.
        slot: From ``read_header`` of the same file.
        piece_bytes: At most so many at a time, but at least one value.

    Raises:
        BlobTruncated: The file has become shorter since.
    """
    dtype, left = DTYPES[slot.dtype], math.prod(slot.shape)
    buffer = np.empty(min(left, max(1, piece_bytes // dtype.itemsize)), dtype)
    with path.open("rb") as file:
        file.seek(slot.begin)
        while left:
            piece = buffer[:left]
            missing = piece.nbytes - file.readinto(piece.data.cast("B"))
            if missing:
                early = missing + (left - piece.size) * dtype.itemsize
                raise BlobTruncated(f"{path.name}: it ends {early} bytes early", next_step=_PULL_AGAIN)
            yield piece
            left -= piece.size


def read_tensor(path: Path, slot: TensorSlot) -> NDArray[np.generic]:
    """Return one tensor as a fresh array; the slot must come from ``read_header`` of the same file.

    Raises:
        BlobTruncated: The file has become shorter since.
    """
    with path.open("rb") as file:
        file.seek(slot.begin)
        data = np.fromfile(file, dtype=DTYPES[slot.dtype], count=math.prod(slot.shape))
    if data.nbytes != slot.end - slot.begin:
        missing = slot.end - slot.begin - data.nbytes
        raise BlobTruncated(f"{path.name}: it ends {missing} bytes early", next_step=_PULL_AGAIN)
    return data.reshape(slot.shape)


def _slot(path: Path, name: str, entry: object, start: int) -> TensorSlot:
    where = f"{path.name}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidTensorHeader(f"{where}: needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InvalidTensorHeader(f"{where}: dtype {str(dtype)[:20]!r}", needed=f"one of {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > 8:
        raise InvalidTensorHeader(f"{where}: shape {str(shape)[:80]}", needed="up to 8 lengths in [0, 2^31)")
    if not _are_counts(offsets, limit=2**62) or len(offsets) != 2:
        raise InvalidTensorHeader(f"{where}: data_offsets {str(offsets)[:80]}", needed="[begin, end]")
    begin, end = offsets
    byte_count = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != byte_count:
        raise InvalidTensorHeader(f"{where}: {end - begin} bytes for {dtype} {shape}", needed=f"{byte_count} bytes")
    return TensorSlot(dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: object, limit: int = 2**31) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < limit for value in values)


def _check_ranges(path: Path, slots: dict[str, TensorSlot], start: int, size: int) -> None:
    position = start
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].begin, item[1].end)):
        if slot.begin != position:
            fault = "overlaps the tensor before it" if slot.begin < position else "leaves bytes unused before it"
            raise TensorOverlap(f"{path.name}: tensor {name[:80]!r} {fault}")
        position = slot.end
    if position > size:
        raise BlobTruncated(f"{path.name}: {size} bytes", needed=f"{position} bytes")
    if position < size:
        raise TensorOverlap(f"{path.name}: {size - position} bytes after the last tensor belong to none")
