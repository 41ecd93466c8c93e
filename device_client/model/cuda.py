"""The CUDA of this process, as a port: which devices there are, what may be allocated on one, and what was.

Only asked where CUDA is wanted or might be there. Tests put a fake in the place of ``TorchCuda``.
"""

from __future__ import annotations

from typing import Protocol

import torch

from device_client.planning.process_overhead import CUDA_CONTEXT_BYTES


class Cuda(Protocol):
    """What loading and measuring need of CUDA; every device has an index."""

    def device_count(self) -> int:
        """Return how many devices can be used; 0 where CUDA cannot be used at all."""

    def current_index(self) -> int:
        """Return the index of the device that ``cuda`` means."""

    def total_bytes(self, device: torch.device) -> int:
        """Return the memory of a device."""

    def shares_main_memory(self, device: torch.device) -> bool:
        """Return whether a device's memory is the host's, as on a Jetson."""

    def peak_reserved_bytes(self, device: torch.device) -> int:
        """Return the high-water mark of torch's allocator."""

    def limit_allocations(self, device: torch.device, share: float) -> None:
        """Let torch's allocator take at most this share of the device's memory."""

    def accumulate_in_float32(self) -> None:
        """Keep the partial sums of float16 products in float32, also where they are reduced."""


class TorchCuda:
    """``torch.cuda``."""

    def device_count(self) -> int:
        """Return how many devices can be used; 0 where CUDA cannot be used at all."""
        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def current_index(self) -> int:
        """Return the index of the device that ``cuda`` means."""
        return torch.cuda.current_device()

    def total_bytes(self, device: torch.device) -> int:
        """Return the memory of a device."""
        return int(torch.cuda.get_device_properties(device).total_memory)

    def shares_main_memory(self, device: torch.device) -> bool:
        """Return whether a device's memory is the host's, as on a Jetson."""
        return bool(torch.cuda.get_device_properties(device).is_integrated)

    def peak_reserved_bytes(self, device: torch.device) -> int:
        """Return the high-water mark of torch's allocator."""
        return torch.cuda.max_memory_reserved(device)

    def limit_allocations(self, device: torch.device, share: float) -> None:
        """Let torch's allocator take at most this share of the device's memory."""
        torch.cuda.set_per_process_memory_fraction(share, device)

    def accumulate_in_float32(self) -> None:
        """Keep the partial sums of float16 products in float32, also where they are reduced."""
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def cap_allocations(cuda: Cuda, device: torch.device, budget_bytes: int) -> None:
    """Let this process use at most ``budget_bytes`` of a device; the context lies outside torch's allocator."""
    allocatable = budget_bytes - CUDA_CONTEXT_BYTES
    cuda.limit_allocations(device, min(1.0, allocatable / cuda.total_bytes(device)))


def peak_bytes(cuda: Cuda, device: torch.device) -> int:
    """Return what this process has used of a device at most, the context included, as a budget counts it."""
    return cuda.peak_reserved_bytes(device) + CUDA_CONTEXT_BYTES
