"""Times the stages of a preparation and measures their memory, to hold against the plan on the report page.

Costs some microseconds per stage. Knows nothing about what the stages do.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, LocalLauncher
from cloud_service.pipeline.planning.memory_meter import MemoryMeter, MemoryPeak, TorchAccelerators
from cloud_service.pipeline.planning.preparation_plan import PreparationPlan, StagePlan
from cloud_service.pipeline.report.run_record import PeakBytes, RunRecord, StageRecord

_CPUINFO = Path("/proc/cpuinfo")


class RunRecorder:
    """Collects one attempt's figures.

    Args:
        plan: What was predicted.
        accelerators: Indices of the accelerators in use; empty on a CPU.
        is_resumed: Whether an earlier attempt did part of the work.
    """

    def __init__(self, plan: PreparationPlan, accelerators: tuple[int, ...], *, is_resumed: bool) -> None:
        self._plan = plan
        self._accelerators = accelerators
        self._is_resumed = is_resumed
        self._meter = MemoryMeter(TorchAccelerators(accelerators))
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what is done inside as one stage."""
        started = time.monotonic()
        with self._meter.stage(name):
            yield
        self._seconds[name] = time.monotonic() - started

    def record(self, launcher: FisherLauncher, *, bundle_digest: str, bundle_bytes: int) -> RunRecord:
        """Return what was measured beside what was planned.

        Shards that other processes computed are neither in this one's memory nor in the plan, which is for one
        process: where there were any, the plan of that stage and its peaks are left out.
        """
        elsewhere = {"calibrating"} if launcher.name != LocalLauncher.name else set()
        planned = [stage for stage in self._plan.stages if stage.stage not in elsewhere]
        plans = {str(stage.stage): stage for stage in planned}
        peaks = [peak for stage, peak in self._meter.peaks.items() if stage not in elsewhere]
        fullest = max((max(peak.accelerator_bytes, default=0) for peak in peaks), default=0)
        return RunRecord(
            machine=_machine_name(),
            device=torch.cuda.get_device_name(self._accelerators[0]) if self._accelerators else "cpu",
            torch_version=torch.__version__,
            transformers_version=transformers.__version__,
            stages=tuple(
                _stage_record(name, seconds, plans.get(name), None if name in elsewhere else self._meter.peaks[name])
                for name, seconds in self._seconds.items()
            ),
            accelerator=PeakBytes(_planned_accelerator_bytes(planned), fullest) if self._accelerators else PeakBytes(),
            host=PeakBytes(
                max((stage.host_bytes for stage in planned), default=None),
                max((peak.host_bytes for peak in peaks), default=None),
            ),
            accumulators=self._plan.accumulators if self._accelerators else "host",
            passes=len(self._plan.passes),
            recomputes_activations=self._plan.recomputes_activations,
            launcher=launcher.name,
            workers=launcher.workers,
            is_resumed=self._is_resumed,
            bundle_digest=bundle_digest,
            bundle_bytes=bundle_bytes,
        )


def _stage_record(name: str, seconds: float, plan: StagePlan | None, peak: MemoryPeak | None) -> StageRecord:
    return StageRecord(
        name,
        seconds,
        plan.seconds if plan else None,
        PeakBytes(plan.host_bytes if plan else None, peak.host_bytes if peak else None),
    )


def _planned_accelerator_bytes(stages: Sequence[StagePlan]) -> int:
    return max((count for stage in stages for count in stage.accelerator_bytes), default=0)


def _machine_name() -> str:
    """Return processor and core count."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())}, {os.cpu_count()} cores"
