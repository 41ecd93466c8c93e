"""Chooses how a preparation uses memory: the fastest way, by predicted time, that stays within the budgets.

    for every way of running the Fisher pass, the fastest first
        passes over groups of blocks  ×  activations kept or recomputed  ×  sums beside the weights or on the host
        ×  totals in memory or on disk  ×  1 … all accelerators
    on a CPU also: the network read block by block, for 1 … all shards of the sequences together
    take the first whose predicted peaks fit

Every way gives the same bundle, bit for bit; so does every budget, because the compute dtype does not depend on it. A
larger budget admits every way that a smaller one does, so more memory never makes a plan slower. A twentieth of each
budget is left free: what predictions may be off by, and what an allocator cannot use.
Costs some milliseconds, a second for 80 blocks on 8 devices. Imports no torch. Knows nothing about carrying plans out.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cloud_service.pipeline.planning.model_shape import ModelShape
from cloud_service.pipeline.planning.peak_memory import STAGES, FisherRun, PeakModel, Place, Placement, Stage
from cloud_service.pipeline.planning.placement import device_map, place
from cloud_service.pipeline.planning.run_time import TimeModel
from cloud_service.pipeline.planning.workload import Machine, Workload
from shared.byte_sizes import format_bytes, format_enough
from shared.errors import ResourceError

HEADROOM = 0.05
"""Share of a budget that a plan leaves free."""

_PLACES: tuple[Place, ...] = ("accelerator", "host")


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one stage is predicted to need.

    Attributes:
        stage: Its name, as ``shared.api.Stage`` has it.
        host_bytes: Peak of main memory, what the process used before included.
        accelerator_bytes: Peak of each accelerator that is used, its context included; empty on a CPU.
        seconds: Its duration.
    """

    stage: Stage
    host_bytes: int
    accelerator_bytes: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class PreparationPlan:
    """How one preparation uses memory. None of it changes the bundle.

    Attributes:
        compute_dtype: What gradients are computed in: bfloat16 on accelerators, float32 on a CPU.
        accumulators: Where the float32 sums of a pass lie; on a CPU ``accelerator`` is host memory too.
        passes: Block indices of each pass over the calibration sequences.
        recomputes_activations: Whether each block's activations are computed again in the backward pass.
        totals_in_memory: Whether a pass's totals stay in host memory between shards, or lie on disk.
        device_map: Module name → accelerator, for a model spread over several; None for one device.
        stages: What each stage needs.
        accelerator_budgets: Bytes that may be used of each accelerator; empty on a CPU.
        host_budget: Bytes that may be used of main memory.
        copied_bytes: Disk space of the 16-bit copy that is written of a quantised file first; 0 where none is.
        copying_seconds: What writing it takes.
        streamed_shards: Shards of the calibration sequences that go through the blocks together while one block at a
            time is in memory; None: the whole network is in memory whenever it computes.
    """

    compute_dtype: Literal["float32", "bfloat16"]
    accumulators: Place
    passes: tuple[tuple[int, ...], ...]
    recomputes_activations: bool
    totals_in_memory: bool
    device_map: Mapping[str, int] | None
    stages: tuple[StagePlan, ...]
    accelerator_budgets: tuple[int, ...]
    host_budget: int
    copied_bytes: int = 0
    copying_seconds: float = 0.0
    streamed_shards: int | None = None

    @property
    def host_bytes(self) -> int:
        """Predicted peak of main memory over all stages."""
        return max(stage.host_bytes for stage in self.stages)

    @property
    def accelerator_bytes(self) -> int:
        """Predicted peak of the fullest accelerator over all stages; 0 on a CPU."""
        return max((count for stage in self.stages for count in stage.accelerator_bytes), default=0)

    @property
    def seconds(self) -> float:
        """Predicted duration of all stages, and of the copy before them."""
        return self.copying_seconds + sum(stage.seconds for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        """Return the plan of one stage. Raises KeyError where the stage is not planned."""
        return {stage.stage: stage for stage in self.stages}[name]  # type: ignore[index]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON values, its peaks and duration beside its choices."""
        totals = {
            "host_bytes": self.host_bytes,
            "accelerator_bytes": self.accelerator_bytes,
            "seconds": self.seconds,
        }
        return dataclasses.asdict(self) | totals


def plan_preparation(shape: ModelShape, workload: Workload, machine: Machine) -> PreparationPlan:
    """Return the fastest plan that fits.

    Raises:
        ResourceError: None fits; the message names the smallest budgets that would do.
    """
    peaks, times = PeakModel(shape, workload, machine), TimeModel(shape, workload, machine)
    usable = _usable(machine)
    for run, devices in sorted(_ways(peaks), key=lambda way: (times.calibrating(way[0]), way[1])):
        if max(peaks.host(stage, run) for stage in STAGES) > usable.host_budget:
            continue
        placement = _place(peaks, run, usable.accelerator_budgets[:devices])
        if placement is not None:
            return _plan(peaks, times, run, placement)
    raise _nothing_fits(peaks)


def _ways(peaks: PeakModel) -> Iterator[tuple[FisherRun, int]]:
    """Yield every way to run the Fisher pass, and on how many devices."""
    shape, machine = peaks.shape, peaks.machine
    places = _PLACES if machine.accelerator_budgets else _PLACES[:1]
    devices = range(1, max(1, len(machine.accelerator_budgets)) + 1)
    for passes, recomputes, accumulators, in_memory in itertools.product(
        _groupings(len(shape.blocks)), (False, True), places, (True, False)
    ):
        run = FisherRun(passes, recomputes, accumulators, in_memory)
        yield from ((run, count) for count in devices)
    if shape.family.is_tested and not machine.accelerator_budgets and not peaks.workload.needs_whole_network:
        whole = (tuple(range(len(shape.blocks))),)
        shards = (-(-peaks.workload.shards // sweeps) for sweeps in range(1, peaks.workload.shards + 1))
        yield from ((FisherRun(whole, True, "accelerator", True, count), 1) for count in dict.fromkeys(shards))


@functools.cache
def _groupings(block_count: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the ways to cut the blocks into passes: contiguous (faster) and strided (spreads over devices).

    Of the numbers of passes that give equally large groups only the smallest is of use.
    """
    counts = sorted({-(-block_count // size) for size in range(1, block_count + 1)})
    ways = []
    for count in counts:
        bounds = [part * block_count // count for part in range(count + 1)]
        ways.append(tuple(tuple(range(begin, end)) for begin, end in itertools.pairwise(bounds)))
        ways.append(tuple(tuple(range(first, block_count, count)) for first in range(count)))
    return tuple(dict.fromkeys(ways))


def _usable(machine: Machine) -> Machine:
    return dataclasses.replace(
        machine,
        host_budget=int(machine.host_budget * (1 - HEADROOM)),
        accelerator_budgets=tuple(int(budget * (1 - HEADROOM)) for budget in machine.accelerator_budgets),
    )


def _place(peaks: PeakModel, run: FisherRun, budgets: tuple[int, ...]) -> Placement | None:
    blocks = len(peaks.shape.blocks)
    if not budgets:
        return Placement((), 0)
    if peaks.least_on_accelerators(run, len(budgets)) > sum(budgets):
        return None
    placement = place(blocks, budgets, functools.partial(peaks.accelerator_calibrating, run))
    if placement is None:
        return None
    needed = [peaks.accelerators(stage, run, placement) for stage in STAGES]
    fits = all(count <= budget for stage in needed for count, budget in zip(stage, budgets, strict=False))
    return placement if fits else None


def _plan(peaks: PeakModel, times: TimeModel, run: FisherRun, placement: Placement) -> PreparationPlan:
    machine = peaks.machine
    is_spread = len(placement.blocks) > 1
    return PreparationPlan(
        compute_dtype="bfloat16" if machine.accelerator_budgets else "float32",
        accumulators=run.accumulators,
        passes=run.passes,
        recomputes_activations=run.recomputes_activations,
        totals_in_memory=run.totals_in_memory,
        device_map=device_map(peaks.shape, placement) if is_spread else None,
        stages=tuple(
            StagePlan(
                stage,
                peaks.host(stage, run),
                peaks.accelerators(stage, run, placement) if machine.accelerator_budgets else (),
                times.seconds(stage, run),
            )
            for stage in STAGES
        ),
        accelerator_budgets=machine.accelerator_budgets,
        host_budget=machine.host_budget,
        copied_bytes=times.workload.copied_bytes,
        copying_seconds=times.copying(),
        streamed_shards=run.streamed_shards,
    )


def _nothing_fits(peaks: PeakModel) -> ResourceError:
    """Return the error that names what the leanest plans would need."""
    machine = peaks.machine
    leanest = [run for run, _ in _ways(peaks)]
    host = min(max(peaks.host(stage, run) for stage in STAGES) for run in leanest)
    found = f"main memory to use: {format_bytes(machine.host_budget)} (max_host_bytes, or what is free here if less)"
    needed = f"at least {format_enough(_budget_for(host))} of main memory"
    if machine.accelerator_budgets:
        found += f"; of each accelerator: {format_bytes(min(machine.accelerator_budgets))}"
        needed += f", and {format_enough(_budget_for(_smallest_accelerator(peaks, leanest)))} of each accelerator"
        needed += f" ({len(machine.accelerator_budgets)} of them)"
    return ResourceError(
        f"{found}: no way to prepare this model fits",
        needed=f"{needed}, for sequences of {peaks.workload.tokens} tokens; a twentieth of it is kept free",
        next_step="raise the budget, add accelerators, or shorten the sequences (--tokens); see: zo-cloud plan",
        param="max_accelerator_bytes" if machine.accelerator_budgets else "max_host_bytes",
    )


def _smallest_accelerator(peaks: PeakModel, runs: list[FisherRun]) -> int:
    """Return the smallest equal budget at which some way fits all accelerators, to a MiB."""
    count = len(peaks.machine.accelerator_budgets)
    most = len(peaks.shape.blocks)
    leanest = [run for run in runs if len(run.passes) == most and run.recomputes_activations and run.totals_in_memory]
    fails, fits = 0, 2 * peaks.least_on_accelerators(leanest[0], count) + (1 << 40)
    while fits - fails > 1 << 20:
        middle = (fits + fails) // 2
        if any(_place(peaks, run, (middle,) * count) is not None for run in leanest):
            fits = middle
        else:
            fails = middle
    return fits


def _budget_for(peak: int) -> int:
    return int(peak / (1 - HEADROOM)) + 1
