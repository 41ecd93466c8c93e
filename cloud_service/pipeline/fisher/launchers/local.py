"""The Fisher pass in this process: shard after shard, for one group of blocks after another.

    for each group of blocks            as many passes as memory asks for; one where every accumulator fits
        for each shard                  sums from zero
            for each block              added to the totals: from then on the shard is never computed again

Costs one forward pass and the backward pass down to the group's lowest block, per sequence and group. A network that
memory does not hold is read block by block instead (``streamed_squares``). Knows nothing about how that was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.shards import shard_count, shard_rows
from cloud_service.pipeline.fisher.squared_gradients import sum_squares, zero_sums
from cloud_service.pipeline.fisher.streamed_squares import estimate_by_block
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import LoadedModel, ModelOutline, compute_dtype, load_model
from cloud_service.pipeline.model.streamed_model import stream_model


@dataclass(frozen=True, slots=True)
class FisherPasses:
    """How the Fisher pass goes through the model; none of it changes a bit of the result.

    Attributes:
        groups: Indices of the decoder blocks of each pass; together all blocks, each once.
        accumulates_on_host: Whether the sums lie in host memory, not beside the weights.
        recomputes_activations: Whether every block's activations are computed again in the backward pass.
        streamed_shards: Shards that go through the blocks together while one block at a time is in memory, all of them
            in one pass over all blocks; None: the whole network is in memory.
    """

    groups: tuple[tuple[int, ...], ...]
    accumulates_on_host: bool = False
    recomputes_activations: bool = False
    streamed_shards: int | None = None


@dataclass(frozen=True, slots=True)
class FisherWork:
    """What there is to estimate.

    Attributes:
        outline: The model, not loaded.
        folder: Its checkpoint.
        calibration: The sequences.
        passes: The groups of blocks.
        device: Torch device; None means CUDA where there is one, else the CPU.
        device_map: Module name → device of a model spread over several; None for one device.
        worker_host_bytes: Main memory that one process at this work takes, its libraries included; None: not known.
        host_budget: Main memory of this machine that may be used; None: not known.
    """

    outline: ModelOutline
    folder: Path
    calibration: Calibration
    passes: FisherPasses
    device: str | None = None
    device_map: Mapping[str, int | str] | None = None
    worker_host_bytes: int | None = None
    host_budget: int | None = None


class FisherLauncher(Protocol):
    """Where the shards are computed."""

    @property
    def name(self) -> str:
        """What operators call it."""

    @property
    def workers(self) -> int:
        """How many shards are computed at the same time."""

    def arithmetic(self, work: FisherWork) -> str:
        """Return what the last bits of the sums depend on; see ``arithmetic_of``."""

    def estimate(self, work: FisherWork, totals: FisherTotals, *, after_sequence: Callable[[int], None]) -> None:
        """Add all shards that are missing to the totals; of other arithmetic, all shards are missing.

        Args:
            work: What to estimate.
            totals: Where to go on.
            after_sequence: Told the number of sequences done so far, counted in every pass; may raise to stop.

        Raises:
            UnsupportedModel: A weight or a loss is not finite.
            ResourceError: The device has too little memory.
            DiskError: The totals cannot be saved.
        """


class LocalLauncher:
    """Computes the shards in this process, one after another; the model is loaded for as long as that takes."""

    name = "local"
    workers = 1

    def arithmetic(self, work: FisherWork) -> str:
        """Return what the last bits of the sums depend on."""
        places = [f"cuda:{place}" if isinstance(place, int) else place for place in (work.device_map or {}).values()]
        device = next(iter(places), work.device) or ("cuda" if torch.cuda.is_available() else "cpu")
        return arithmetic_of(torch.device(device), torch.get_num_threads())

    def estimate(self, work: FisherWork, totals: FisherTotals, *, after_sequence: Callable[[int], None]) -> None:
        """Add all shards that are missing to the totals."""
        totals.begin(self.arithmetic(work))
        if (shards := work.passes.streamed_shards) is not None:
            streamed = stream_model(work.outline)
            estimate_by_block(streamed, work.calibration, totals, shards, after_sequence=after_sequence)
            return
        model = load_model(work.outline, device=work.device, device_map=work.device_map)
        sequences = len(work.calibration)
        for index, group in enumerate(work.passes.groups):
            done_before = index * sequences

            def after_row(row: int, done_before: int = done_before) -> None:
                after_sequence(done_before + row + 1)

            sums, first = None, totals.next_shard(group)
            after_sequence(done_before + shard_rows(sequences, first).start)
            for shard in range(first, shard_count(sequences)):
                sums = sum_shard(model, work.calibration, shard, group, work.passes, sums, after_row=after_row)
                for block in group:
                    totals.add(shard, block, sums)


def arithmetic_of(device: torch.device, threads: int) -> str:
    """Return the compute dtype, kind of device and, on a processor, threads: shards that differ in it are never mixed.

    A matrix product of another number of threads adds in another order, so its last bits differ.
    """
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    return f"{dtype} {device.type}" + (f" threads={threads}" if device.type == "cpu" else "")


def sum_shard(
    model: LoadedModel,
    calibration: Calibration,
    shard: int,
    group: Sequence[int],
    passes: FisherPasses,
    sums: dict[str, Tensor] | None = None,
    *,
    after_row: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """Return one shard's summed squared gradients of some blocks' linear weights, float32 by name.

    Args:
        model: The model.
        calibration: All sequences.
        shard: Which shard.
        group: Indices of the blocks.
        passes: Where to accumulate, and whether activations are recomputed.
        sums: Sums of an earlier shard of the same group, whose memory is used again.
        after_row: Told the index of every finished sequence; may raise to stop.
    """
    parameters, linears = model.parameters, model.outline.block_linears
    weights = {name: parameters[name] for block in group for name in linears[block]}
    sums = sums or zero_sums(weights, on_host=passes.accumulates_on_host)
    for total in sums.values():
        total.zero_()
    rows = shard_rows(len(calibration), shard)
    finished = iter(rows)
    sum_squares(
        model.network,
        weights,
        calibration,
        rows,
        sums,
        recomputed_blocks=model.blocks if passes.recomputes_activations else (),
        after_sequence=lambda: after_row(next(finished)),
    )
    return sums
