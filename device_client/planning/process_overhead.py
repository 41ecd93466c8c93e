"""What a process holds beside its tensors: the libraries it imports, their buffers, and what malloc cannot give back.

Measured, not derived (``tests/benchmarks/memory_plan_error.py``, Linux, glibc, x86-64):

    libraries    interpreter, torch, transformers, tokenizers and the code that a first pass touches; torch and
                 transformers also import triton and scipy where they are installed
    products     a matrix product packs its operands: up to 32 MiB, at most the largest weight
    slack        malloc keeps freed pieces below 32 MiB between living ones: half of what a pass makes of such pieces,
                 and as much again as it makes where a way back frees them in another order;
                 and up to 64 MiB at the end of its heap: a third of what a pass makes

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

CUDA_CONTEXT_BYTES = 512 << 20
"""CUDA's context and cuBLAS' workspace."""

_LIBRARIES_BYTES = 366 << 20
_OPTIONAL_LIBRARIES_BYTES = {"triton": 71 << 20, "scipy": 36 << 20}
_PACKED_OPERANDS_BYTES = 32 << 20
_MMAP_THRESHOLD_BYTES = 32 << 20
_HEAP_END_BYTES = 2 * _MMAP_THRESHOLD_BYTES


def is_installed(package: str) -> bool:
    """Return whether a package could be imported, without importing it."""
    return find_spec(package) is not None


def libraries_bytes(device_type: str, is_installed: Callable[[str], bool] = is_installed) -> int:
    """Return what importing everything costs on a CPU, or CUDA's own share on CUDA."""
    if device_type == "cuda":
        return CUDA_CONTEXT_BYTES
    return _LIBRARIES_BYTES + sum(size for name, size in _OPTIONAL_LIBRARIES_BYTES.items() if is_installed(name))


def product_bytes(device_type: str, largest_weight_bytes: int) -> int:
    """Return what matrix products keep for packed operands; on CUDA it lies in the context's share."""
    return min(_PACKED_OPERANDS_BYTES, largest_weight_bytes) if device_type == "cpu" else 0


def slack_bytes(device_type: str, pieces: Sequence[int], *, is_differentiated: bool = False) -> int:
    """Return what the allocator keeps beside tensors of these bytes."""
    if device_type == "cuda":
        return 0
    small = sum(piece for piece in pieces if piece < _MMAP_THRESHOLD_BYTES)
    between = small if is_differentiated else small // 2
    return between + min(_HEAP_END_BYTES, sum(pieces) // 3)
