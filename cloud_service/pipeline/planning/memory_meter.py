"""Measures the peak of main memory and of every accelerator, stage by stage, to hold against the plan.

    meter = MemoryMeter(torch_accelerators())
    with meter.stage("calibrating"): ...
    meter.peaks["calibrating"].host_bytes

Main memory by Linux' high-water mark, set back at the start of a stage through /proc/self/clear_refs; where that is not
allowed, a thread reads the use every 10 ms. Accelerators by torch's allocator, plus the context that plans count.
Costs some microseconds per stage. Knows nothing about plans.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from cloud_service.pipeline.planning.peak_memory import CONTEXT_BYTES
from shared.process_memory import process_bytes

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_HIGH_WATER_MARK = "5"
_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class MemoryPeak:
    """The most memory in use at any moment of a stage.

    Attributes:
        host_bytes: Main memory of this process.
        accelerator_bytes: Each accelerator's memory, contexts included; empty on a CPU.
    """

    host_bytes: int
    accelerator_bytes: tuple[int, ...] = ()

    def united(self, other: MemoryPeak) -> MemoryPeak:
        """Return the larger of both, figure by figure."""
        pairs = zip(self.accelerator_bytes, other.accelerator_bytes, strict=True)
        return MemoryPeak(max(self.host_bytes, other.host_bytes), tuple(max(pair) for pair in pairs))


class Accelerators(Protocol):
    """The accelerators of this process."""

    def reset_peaks(self) -> None:
        """Set their high-water marks back to what is in use now."""

    def peaks(self) -> tuple[int, ...]:
        """Return the high-water mark of each, without its context."""


class TorchAccelerators:
    """CUDA devices, as torch's allocator sees them.

    Args:
        indices: Their indices; empty on a CPU.
    """

    def __init__(self, indices: tuple[int, ...] = ()) -> None:
        self._indices = indices

    def reset_peaks(self) -> None:
        """Set the allocator's high-water marks back."""
        for index in self._indices:
            torch.cuda.reset_peak_memory_stats(index)

    def peaks(self) -> tuple[int, ...]:
        """Return the most bytes that tensors took of each device."""
        return tuple(torch.cuda.max_memory_allocated(index) for index in self._indices)


class HostMeter:
    """The peak of main memory since its start.

    Args:
        clear_refs: The file that sets the high-water mark back.
    """

    def __init__(self, clear_refs: Path = _CLEAR_REFS) -> None:
        self._is_reset = _reset_high_water_mark(clear_refs)
        self._sampled = process_bytes()[0]
        self._is_over = threading.Event()
        self._sampler = None if self._is_reset else threading.Thread(target=self._sample, daemon=True)
        if self._sampler is not None:
            self._sampler.start()

    def stop(self) -> int:
        """Return the peak; the meter has done its work then."""
        self._is_over.set()
        if self._sampler is None:
            return process_bytes()[1]
        self._sampler.join()
        return self._sampled

    def _sample(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(_SAMPLE_SECONDS)
            self._sampled = max(self._sampled, process_bytes()[0])


class MemoryMeter:
    """Measures stages one after another; a stage entered twice keeps its larger peaks.

    Args:
        accelerators: What to ask besides main memory.
        clear_refs: See ``HostMeter``.
    """

    def __init__(self, accelerators: Accelerators | None = None, clear_refs: Path = _CLEAR_REFS) -> None:
        self._accelerators = accelerators or TorchAccelerators()
        self._clear_refs = clear_refs
        self.peaks: dict[str, MemoryPeak] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside under this name, also where it raises."""
        self._accelerators.reset_peaks()
        host = HostMeter(self._clear_refs)
        try:
            yield
        finally:
            accelerators = tuple(peak + CONTEXT_BYTES for peak in self._accelerators.peaks())
            peak = MemoryPeak(host.stop(), accelerators)
            self.peaks[name] = peak.united(self.peaks[name]) if name in self.peaks else peak


def _reset_high_water_mark(clear_refs: Path) -> bool:
    """Return whether the high-water mark was set back to what is in use now."""
    try:
        clear_refs.write_text(_RESET_HIGH_WATER_MARK)
    except OSError:
        return False
    return True
