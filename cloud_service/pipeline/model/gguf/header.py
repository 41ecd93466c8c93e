"""Reads the header of a GGUF file, which nobody has checked: key-value pairs, and where every tensor lies.

    "GGUF" · version · number of tensors · number of pairs · pairs · tensors {name, dimensions, type, offset} · data

Every length and every number is compared with what is left of the header, or with the file, before anything is built
from it. Whoever holds a header may read the tensors: they lie inside the file, apart from each other, in whole blocks
of types that the package ``gguf`` can dequantise. Costs a read of the header, some megabytes (the vocabulary is in it).
Imports no torch. Knows nothing about model families.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from shared.errors import UnsupportedModel

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

MAX_HEADER_BYTES = 96 * 1024 * 1024
"""Several times the header of a model with a quarter of a million tokens and as many merges."""

_MAX_PAIRS = 4096
_MAX_TENSORS = 65_536
_MAX_ARRAY = 1 << 22
_MAX_NAME_BYTES = 256
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 40
_LARGEST_ALIGNMENT = 65_536
_READ_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a type of values → how ``struct`` writes it."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies and how it is stored.

    Attributes:
        shape: Its shape, the dimension that moves fastest last.
        type: How its values are stored.
        offset: Its first byte, counted from the beginning of the file.
        size: Its length in bytes.
    """

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes:
        name: The file's name, for messages.
        pairs: Its key-value pairs.
        tensors: Its tensors by name, in the file's order.
    """

    name: str
    pairs: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def text(self, key: str) -> str | None:
        """Return a text, or None where there is none under that key."""
        value = self.pairs.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return a whole number, or None where there is none under that key."""
        value = self.pairs.get(key)
        return value if type(value) is int else None

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts, or None where there is none under that key."""
        value = self.pairs.get(key)
        return value if isinstance(value, list) and value and isinstance(value[0], str) else None

    @property
    def type_counts(self) -> dict[str, int]:
        """How many tensors are stored in each type, the most frequent first."""
        return dict(Counter(tensor.type.name for tensor in self.tensors.values()).most_common())


def read_header(stream: BinaryIO, size: int, name: str) -> GgufHeader:
    """Return the header of a GGUF file.

    Args:
        stream: The file, at its beginning.
        size: Its length in bytes.
        name: Its name, for messages.

    Raises:
        UnsupportedModel: It is not a GGUF file of version 2 or 3, is damaged or cut off, or a number is beyond its
            bound; the message names it.
    """
    cursor = _Cursor(stream.read(min(size, MAX_HEADER_BYTES)), name)
    if cursor.take("4s") != b"GGUF":
        raise refusal(name, "does not begin with GGUF", "a GGUF file")
    version = int(cursor.take("I"))
    if version not in _READ_VERSIONS:
        raise refusal(name, f"has version {version}", "version 2 or 3, little-endian")
    tensor_count = cursor.count("Q", _MAX_TENSORS, "tensors")
    pairs = _read_pairs(cursor, cursor.count("Q", _MAX_PAIRS, "key-value pairs"))
    entries = _read_entries(cursor, tensor_count)
    alignment = pairs.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise refusal(name, f"general.alignment is {str(alignment)[:40]}", f"a power of two up to {_LARGEST_ALIGNMENT}")
    data_start = -(-cursor.position // alignment) * alignment
    tensors = {key: _located(entry, data_start, alignment, name, key) for key, entry in entries.items()}
    _check_places(tensors, size, name)
    return GgufHeader(name, pairs, tensors)


def refusal(name: str, found: str, needed: str) -> UnsupportedModel:
    """Return the error of a GGUF file that cannot be read."""
    return UnsupportedModel(
        f"{name} {found}",
        needed=needed,
        next_step="fetch the file again, or give the folder of the original, unquantised model",
        param="model",
    )


class _Cursor:
    """A place in the header's bytes, which moves on as values are taken."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.position = 0

    def take(self, kind: str) -> int | float | bool | bytes:
        layout = struct.Struct(f"<{kind}")
        begin = self._advance(layout.size)
        (value,) = layout.unpack_from(self.data, begin)
        return value  # type: ignore[no-any-return]

    def count(self, kind: str, most: int, what: str) -> int:
        number = int(self.take(kind))
        if number > most:
            raise refusal(self.name, f"states {number} {what}", f"at most {most}")
        return number

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        length = self.count("Q", most, f"bytes of {what}")
        begin = self._advance(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise refusal(self.name, f"holds {what} that is not UTF-8", "UTF-8") from error

    def numbers(self, kind: str, count: int) -> list[int] | list[float] | list[bool]:
        layout = struct.Struct(f"<{count}{kind}")
        return list(layout.unpack_from(self.data, self._advance(layout.size)))

    def _advance(self, size: int) -> int:
        begin = self.position
        if size > len(self.data) - begin:
            longest = len(self.data) == MAX_HEADER_BYTES
            needed = f"at most {MAX_HEADER_BYTES} bytes" if longest else "a file that is whole"
            raise refusal(self.name, f"is not complete: its header ends after byte {len(self.data)}", needed)
        self.position += size
        return begin


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, Value]:
    pairs: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text("a key", _MAX_NAME_BYTES)
        if key in pairs:
            raise refusal(cursor.name, f"has the key {key!r} twice", "every key once")
        pairs[key] = _read_value(cursor, int(cursor.take("I")), key)
    return pairs


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.text(key)
    if kind in _SCALARS:
        return cursor.take(_SCALARS[kind])  # type: ignore[return-value]
    if kind != _ARRAY:
        raise refusal(cursor.name, f"has a value of type {kind} under {key!r}", "types 0 to 12")
    kind = int(cursor.take("I"))
    count = cursor.count("Q", _MAX_ARRAY, f"entries of {key}")
    if kind == _STRING:
        return [cursor.text(key) for _ in range(count)]
    if kind in _SCALARS:
        return cursor.numbers(_SCALARS[kind], count)
    raise refusal(cursor.name, f"has a list of type {kind} under {key!r}", "lists of numbers or texts")


_Entry = tuple[tuple[int, ...], int, int]


def _read_entries(cursor: _Cursor, count: int) -> dict[str, _Entry]:
    """Return shape, number of the type and offset of every tensor."""
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        key = cursor.text("the name of a tensor", _MAX_NAME_BYTES)
        if key in entries:
            raise refusal(cursor.name, f"has the tensor {key!r} twice", "every tensor once")
        dimensions = cursor.count("I", _MAX_DIMENSIONS, f"dimensions of {key}")
        shape = tuple(reversed([int(cursor.take("Q")) for _ in range(dimensions)]))
        entries[key] = shape, int(cursor.take("I")), int(cursor.take("Q"))
    return entries


def _located(entry: _Entry, data_start: int, alignment: int, name: str, key: str) -> GgufTensor:
    shape, number, offset = entry
    if not shape or min(shape) < 1 or prod(shape) > _MAX_ELEMENTS:
        raise refusal(name, f"has a tensor {key!r} of the shape {shape}", f"1 to {_MAX_ELEMENTS} elements")
    if offset % alignment:
        raise refusal(name, f"has the tensor {key!r} at {offset}", f"multiples of {alignment}")
    storage = _storage(number, name, key)
    block_elements, block_bytes = GGML_QUANT_SIZES[storage]
    if shape[-1] % block_elements:
        raise refusal(name, f"has rows of {shape[-1]} in {key!r}", f"whole blocks of {block_elements} ({storage.name})")
    return GgufTensor(shape, storage, data_start + offset, prod(shape) // block_elements * block_bytes)


def _storage(number: int, name: str, key: str) -> GGMLQuantizationType:
    """Return the type of a tensor, which one block of zeros has shown to be readable."""
    try:
        storage = GGMLQuantizationType(number)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[storage][1]), np.uint8), storage)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise refusal(name, f"stores {key!r} as type {number}", "a type that the package gguf dequantises") from error
    return storage


def _check_places(tensors: Mapping[str, GgufTensor], size: int, name: str) -> None:
    before, end = "", 0
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise refusal(name, f"has the tensors {before!r} and {key!r} in the same place", "tensors that are apart")
        before, end = key, tensor.offset + tensor.size
    if end > size:
        raise refusal(name, f"is not complete: it has {size} bytes, and {before!r} ends at {end}", "the whole file")
