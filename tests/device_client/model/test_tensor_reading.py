"""Tensors read to their place: the values, and that nothing is held twice."""

from __future__ import annotations

import ctypes
import mmap
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from live_bytes import LiveBytes
from peers.seven_b_shapes import shaped_bundle
from random_network import TINY
from safetensors.numpy import save_file

from device_client.model.loader import load_model
from device_client.model.tensor_reading import drop_cached_pages, read_to
from shared.bundle.tensor_header import read_header, read_pieces, read_tensor
from shared.errors import BlobTruncated

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tensors.safetensors"
    values = np.arange(6 * MIB, dtype=np.float32).reshape(3, 2, MIB)
    save_file({"codes": np.arange(77, dtype=np.uint8), "values": (values % 2048).astype(np.float16)}, path)
    return path


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.float32, torch.bfloat16])
def test_a_tensor_arrives_with_its_shape_and_values_in_the_dtype_that_was_asked_for(
    file: Path, dtype: torch.dtype | None
) -> None:
    found = read_to(file, read_header(file)["values"], CPU, dtype)

    expected = (torch.arange(6 * MIB) % 2048).view(3, 2, MIB).half()
    assert torch.equal(found, expected.to(dtype or torch.float16))
    assert found.dtype == (dtype or torch.float16)


def test_what_is_converted_is_read_a_few_mebibytes_at_a_time(file: Path) -> None:
    slot = read_header(file)["values"]
    tracemalloc.start()  # sees NumPy's arrays, not torch's tensors

    read_to(file, slot, CPU, torch.float32)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert slot.end - slot.begin == 12 * MIB
    assert peak < 9 * MIB


def test_pieces_are_the_tensor_in_order(file: Path) -> None:
    slot = read_header(file)["codes"]

    pieces = [piece.tolist() for piece in read_pieces(file, slot, piece_bytes=30)]

    assert pieces == [list(range(30)), list(range(30, 60)), list(range(60, 77))]


def test_a_file_that_has_become_shorter_is_reported(file: Path) -> None:
    slots = read_header(file)
    last = max(slots.values(), key=lambda slot: slot.end)
    os.truncate(file, last.end - 6)

    with pytest.raises(BlobTruncated, match="ends 6 bytes early"):
        read_tensor(file, last)
    with pytest.raises(BlobTruncated, match="ends 6 bytes early"):
        list(read_pieces(file, last))


def test_loading_never_holds_more_than_the_model_and_a_piece_of_a_file(tmp_path: Path) -> None:
    # Embeddings of 12 MiB in 16 bit, 24 MiB in float32.
    bundle = shaped_bundle(tmp_path, TINY | {"vocab_size": 100_000, "tie_word_embeddings": True})
    load_model(bundle, device="cpu")  # what is imported on first use is not the model's
    torch_bytes = LiveBytes()
    tracemalloc.start()  # sees NumPy's arrays: tensors made from them, and what is being read

    with torch_bytes:
        model = load_model(bundle, device="cpu")

    numpy_final, numpy_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(parameter.nbytes for parameter in model.network.parameters()) > 24 * MIB
    assert torch_bytes.peak <= torch_bytes.now + MIB
    assert numpy_peak <= numpy_final + 5 * MIB


def cached_pages(path: Path) -> int:
    """How many pages of a file the system holds, by mincore(2)."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
        states = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), states)
        del anchor
    assert not failed
    return sum(state & 1 for state in states)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise here")
def test_cached_pages_are_given_back(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())  # only clean pages can be given back
    read_tensor(file, read_header(file)["values"])
    before = cached_pages(file)

    drop_cached_pages(file)

    if cached_pages(file) == before:
        pytest.skip("this file system keeps its files in memory")
    assert cached_pages(file) < before // 10
