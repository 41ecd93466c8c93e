"""How much memory this process has used at most.

Main memory by the system's own high-water mark (``shared.process_memory``), accelerator memory by torch's allocator and
the context that a plan counts, so that peak and budget mean the same. A reading costs some microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from device_client.model.cuda import Cuda, TorchCuda, peak_bytes
from shared.process_memory import process_bytes


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes at one moment.

    Attributes:
        process_bytes: Main memory in use.
        process_peak_bytes: Its high-water mark.
        accelerator_peak_bytes: High-water mark on CUDA, the context included; None on a CPU.
    """

    process_bytes: int
    process_peak_bytes: int
    accelerator_peak_bytes: int | None

    @property
    def peak_bytes(self) -> int:
        """What a memory budget is compared with: accelerator memory on CUDA, main memory on a CPU."""
        return self.process_peak_bytes if self.accelerator_peak_bytes is None else self.accelerator_peak_bytes


class MemoryMeter:
    """Reads the high-water marks of this process.

    Args:
        device: The compute device.
        cuda: CUDA; None takes torch's.
    """

    def __init__(self, device: torch.device, cuda: Cuda | None = None) -> None:
        self._device, self._cuda = device, cuda or TorchCuda()

    def read(self) -> MemoryReading:
        """Return the bytes now and at most."""
        now, peak = process_bytes()
        accelerator = peak_bytes(self._cuda, self._device) if self._device.type == "cuda" else None
        return MemoryReading(now, peak, accelerator)

    @property
    def peak_bytes(self) -> int:
        """The high-water mark that counts on this device."""
        return self.read().peak_bytes
