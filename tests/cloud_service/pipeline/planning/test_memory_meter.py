"""Peaks, stage by stage."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from cloud_service.pipeline.planning.memory_meter import MemoryMeter, MemoryPeak
from cloud_service.pipeline.planning.peak_memory import CONTEXT_BYTES
from shared.process_memory import process_bytes

MIB = 1 << 20


class FakeAccelerators:
    """Two devices whose peaks are set by the test."""

    def __init__(self) -> None:
        self.current = (0, 0)
        self.resets = 0

    def reset_peaks(self) -> None:
        self.resets += 1

    def peaks(self) -> tuple[int, ...]:
        return self.current


def use(mebibytes: int) -> None:
    torch.ones(mebibytes * MIB // 4).sum()


@pytest.mark.parametrize("is_reset_allowed", [True, False], ids=["high-water mark", "sampling"])
def test_a_stage_has_its_own_peak_and_the_next_one_does_not_inherit_it(tmp_path: Path, is_reset_allowed: bool) -> None:
    clear_refs = Path("/proc/self/clear_refs") if is_reset_allowed else tmp_path / "missing" / "clear_refs"
    meter = MemoryMeter(clear_refs=clear_refs)
    before = process_bytes()[0]
    with meter.stage("large"):
        held = torch.ones(256 * MIB // 4)
        if not is_reset_allowed:
            time.sleep(0.3)  # thirty samples
        del held
    with meter.stage("small"):
        use(1)
    assert meter.peaks["large"].host_bytes >= before + 200 * MIB
    assert meter.peaks["small"].host_bytes < meter.peaks["large"].host_bytes - 150 * MIB
    assert meter.peaks["small"].accelerator_bytes == ()


def test_accelerators_count_with_their_contexts() -> None:
    accelerators = FakeAccelerators()
    meter = MemoryMeter(accelerators)
    with meter.stage("calibrating"):
        accelerators.current = (5 * MIB, 7 * MIB)
    assert meter.peaks["calibrating"].accelerator_bytes == (5 * MIB + CONTEXT_BYTES, 7 * MIB + CONTEXT_BYTES)
    assert accelerators.resets == 1


def test_a_stage_entered_twice_keeps_its_larger_peaks_also_after_an_error() -> None:
    accelerators = FakeAccelerators()
    meter = MemoryMeter(accelerators)
    for peak in ((9 * MIB, 1 * MIB), (2 * MIB, 3 * MIB)):

        def fail(peak: tuple[int, int] = peak) -> None:
            with meter.stage("quantizing"):
                accelerators.current = peak
                raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            fail()
    assert meter.peaks["quantizing"].accelerator_bytes == (9 * MIB + CONTEXT_BYTES, 3 * MIB + CONTEXT_BYTES)


def test_two_peaks_unite_figure_by_figure() -> None:
    assert MemoryPeak(5, (1, 4)).united(MemoryPeak(3, (2, 2))) == MemoryPeak(5, (2, 4))
