"""Reads tensors from a bundle's files to where they will stay, holding nothing twice.

Every tensor is converted and moved a few MiB at a time: the 16-bit embeddings of a 7B model alone would be 262 MB
beside their float32 copy. On the host it lies in memory of its own, in huge pages where there are any: what a backend
packs otherwise is given back as a whole when it is dropped, and leaves no hole among small tensors made meanwhile.
Files are read, never mapped: on a Jetson, where the device's memory is the host's, mapped pages would count a second
time, and pages that the system cached are given back after each file. Knows nothing about models.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from device_client.model.backends.workspace import reusable_buffer
from shared.bundle.tensor_header import TensorSlot, read_pieces

_TORCH_DTYPES = {"U8": torch.uint8, "F16": torch.float16, "I32": torch.int32}


def read_to(path: Path, slot: TensorSlot, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return one tensor on a device.

    Args:
        path: A safetensors file.
        slot: From ``read_header`` of the same file.
        device: Where the tensor will stay.
        dtype: None keeps the stored one.
    """
    placed = reusable_buffer(prod(slot.shape), dtype or _TORCH_DTYPES[slot.dtype], device)
    start = 0
    for piece in read_pieces(path, slot):
        placed[start : start + piece.size].copy_(torch.from_numpy(piece))
        start += piece.size
    return placed.view(slot.shape)


def drop_cached_pages(path: Path) -> None:
    """Tell the system that a file's cached pages are not needed any more, where it listens."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
