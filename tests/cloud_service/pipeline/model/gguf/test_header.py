"""A GGUF header is foreign input: whatever a number in it says, nothing is built before it was compared."""

from __future__ import annotations

import struct
import time
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import random_weights, write_gguf

from cloud_service.pipeline.model.gguf.header import GgufHeader, read_header
from shared.errors import UnsupportedModel

F32, Q4_1 = 0, 3
UINT32, STRING, ARRAY, BOOL = 4, 8, 9, 7


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    """Return a tensor's entry; ``shape`` as the file has it, the fastest dimension first."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def gguf(pairs: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: bytes = b"", version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def read(data: bytes) -> GgufHeader:
    return read_header(BytesIO(data), len(data), "m.gguf")


def test_a_header_written_by_hand_is_read() -> None:
    pairs = (
        pair("general.architecture", STRING, text("llama")),
        pair("a.number", UINT32, struct.pack("<I", 7)),
        pair("a.list", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("▁y")),
        pair("a.flag", BOOL, b"\1"),
    )
    tensors = (tensor("w", (32, 2), Q4_1), tensor("v", (3,), F32, offset=64))
    header = read(gguf(pairs, tensors, b"\0" * 76))
    assert dict(header.pairs) == {
        "general.architecture": "llama",
        "a.number": 7,
        "a.list": ["x", "▁y"],
        "a.flag": True,
    }
    assert header.tensors["w"].shape == (2, 32)  # two rows of one block of 20 bytes
    assert header.tensors["w"].size == 40
    assert header.tensors["v"].offset == header.tensors["w"].offset + 64
    assert header.type_counts == {"Q4_1": 1, "F32": 1}


def test_a_file_of_the_package_gguf_is_read_with_all_its_tensors(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    header = read(path.read_bytes())
    assert len(header.tensors) == len(random_weights())
    assert header.number("llama.block_count") == 2
    assert (header.texts("tokenizer.ggml.tokens") or [])[256] == "<s>"


@pytest.mark.parametrize("cut", [3, 20, 100, 5000, -1])
def test_a_file_that_is_cut_off_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    with pytest.raises(UnsupportedModel, match="is not complete") as caught:
        read(data[:cut])
    assert "fetch the file again" in caught.value.next_step


HUGE = 1 << 62
FAULTS = {
    "other_file": (b"PK\3\4" + b"\0" * 60, "does not begin with GGUF"),
    "version_1": (gguf(version=1), "has version 1"),
    "big_endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "has version 50331648"),
    "tensor_count": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), f"states {HUGE} tensors"),
    "pair_count": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), f"states {HUGE} key-value pairs"),
    "key_length": (gguf((struct.pack("<Q", HUGE),)), f"states {HUGE} bytes of a key"),
    "text_length": (gguf((pair("a", STRING, struct.pack("<Q", HUGE)),)), f"states {HUGE} bytes of a"),
    "text_beyond_the_file": (gguf((pair("a", STRING, struct.pack("<Q", 1 << 20)),)), "is not complete"),
    "list_length": (gguf((pair("a", ARRAY, struct.pack("<IQ", UINT32, HUGE)),)), f"states {HUGE} entries of a"),
    "list_beyond_the_file": (gguf((pair("a", ARRAY, struct.pack("<IQ", UINT32, 1 << 21)),)), "is not complete"),
    "list_of_lists": (gguf((pair("a", ARRAY, struct.pack("<IQ", ARRAY, 1)),)), "has a list of type 9"),
    "type_of_value": (gguf((pair("a", 77, b""),)), "has a value of type 77"),
    "key_twice": (gguf((pair("a", BOOL, b"\1"), pair("a", BOOL, b"\0"))), "has the key 'a' twice"),
    "not_utf8": (gguf((pair("a", STRING, struct.pack("<Q", 2) + b"\xff\xfe"),)), "holds a that is not UTF-8"),
    "tensor_twice": (gguf((), (tensor("w", (1,)), tensor("w", (1,)))), "has the tensor 'w' twice"),
    "dimensions": (gguf((), (text("w") + struct.pack("<I", 9),)), "states 9 dimensions of w"),
    "no_elements": (gguf((), (tensor("w", (4, 0)),)), r"of the shape \(0, 4\)"),
    "product_overflows": (gguf((), (tensor("w", (1 << 33, 1 << 33)),)), "1 to "),
    "half_a_block": (gguf((), (tensor("w", (33, 2), Q4_1),), b"\0" * 64), "rows of 33 in 'w'"),
    "type_of_tensor": (gguf((), (tensor("w", (32,), 999),), b"\0" * 64), "stores 'w' as type 999"),
    "unreadable_type": (gguf((), (tensor("w", (32,), 9),), b"\0" * 64), "stores 'w' as type 9"),  # Q8_1
    "beyond_the_end": (gguf((), (tensor("w", (1024,)),), b"\0" * 64), "'w' ends at"),
    "offset": (gguf((), (tensor("w", (1,), F32, HUGE),), b"\0" * 64), "'w' ends at"),
    "not_aligned": (gguf((), (tensor("w", (1,), F32, 4),), b"\0" * 64), "has the tensor 'w' at 4"),
    "overlapping": (
        gguf((), (tensor("w", (16,)), tensor("v", (16,), F32, 32)), b"\0" * 128),
        "'w' and 'v' in the same place",
    ),
    "alignment": (gguf((pair("general.alignment", UINT32, struct.pack("<I", 24)),)), "general.alignment is 24"),
    "no_alignment": (gguf((pair("general.alignment", UINT32, struct.pack("<I", 0)),)), "general.alignment is 0"),
}


@pytest.mark.attack
@pytest.mark.parametrize("fault", FAULTS)
def test_a_header_that_lies_is_refused_before_anything_is_built(fault: str) -> None:
    data, message = FAULTS[fault]
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(UnsupportedModel, match=message):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert time.process_time() - started < 2


@pytest.mark.attack
def test_bytes_changed_at_random_never_give_anything_but_a_header_or_a_refusal(tmp_path: Path) -> None:
    whole = np.frombuffer(write_gguf(tmp_path / "m.gguf").read_bytes(), np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = whole.copy()
        places = random.integers(0, 12_000, 3)
        damaged[places] = random.integers(0, 256, 3)
        try:
            read(damaged.tobytes())
        except UnsupportedModel:
            refused += 1
    assert refused > 20
