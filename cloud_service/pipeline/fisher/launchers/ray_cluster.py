"""The Fisher pass on a Ray cluster: every shard of every group of blocks is a task, on whichever worker is free.

    worker     sums of squares of one shard, from zero; the model is loaded once per process and kept
    driver     adds the shards to the totals in their fixed order, one block at a time

Gradients are never added before they are squared, so this is not data-parallel training: the result is that of one
process, bit for bit, however many workers there are (with the same threads per worker). A worker that dies costs the
shard it was at: Ray runs that task again elsewhere. At most one task more than there are workers is out at a time, so
what waits in Ray's object store (4 bytes per weight and shard) stays bounded. Workers read the checkpoint from the same
path as the driver: on several machines, from shared storage. Knows nothing about how groups were chosen.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from cloud_service.pipeline.calibration.sequences import Calibration
from cloud_service.pipeline.fisher.launchers.local import FisherPasses, FisherWork, arithmetic_of, sum_shard
from cloud_service.pipeline.fisher.launchers.ray_connection import connection
from cloud_service.pipeline.fisher.launchers.ray_workers import check_memory, check_network_is_whole, worker_devices
from cloud_service.pipeline.fisher.shards import shard_count, shard_rows
from cloud_service.pipeline.fisher.totals import FisherTotals
from cloud_service.pipeline.model.load_model import LoadedModel, load_model, read_outline
from shared.errors import ResourceError, ZoError

_RETRIES = 8
_POLL_SECONDS = 1.0

BlockSums = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class RayLauncher:
    """Computes the shards on a Ray cluster.

    Attributes:
        address: Of a running cluster, as ``ray.init`` takes it; None means the one that this process is connected to,
            and where there is none, one of this machine's own for as long as the pass lasts.
        workers: Tasks that run at the same time.
        threads: Processor threads of each; another number gives sums that differ in their last bits.
        gpus: Accelerators of each, whatever this process has; 0 computes on the processor.
    """

    name: ClassVar[str] = "ray"

    address: str | None = None
    workers: int = 1
    threads: int = 1
    gpus: int = 0

    def arithmetic(self, work: FisherWork) -> str:
        """Return what the last bits of the sums depend on."""
        return arithmetic_of(torch.device(worker_devices(work, self.gpus)[0]), self.threads)

    def estimate(self, work: FisherWork, totals: FisherTotals, *, after_sequence: Callable[[int], None]) -> None:
        """Add all shards that are missing to the totals.

        Raises:
            UnsupportedModel: A weight or a loss is not finite.
            ResourceError: The cluster cannot be reached, its workers lack memory or accelerators, or a shard failed
                again and again.
            DiskError: The totals cannot be saved.
        """
        check_network_is_whole(work)
        if self.address is None:
            check_memory(work, self.workers)
        totals.begin(self.arithmetic(work))
        with connection(self.address, processors=self.workers * self.threads, gpus=self.gpus), _ray_errors():
            import ray

            submit = self._submitter(work)
            waiting = _missing_shards(work, totals)
            running = deque(submit(shard) for shard in islice(waiting, self.workers + 1))
            while running:
                shard, sums = running[0]
                if not ray.wait([sums[0]], timeout=_POLL_SECONDS, fetch_local=False)[0]:
                    after_sequence(shard.done_before)
                    continue
                for block, part in zip(shard.group, sums, strict=True):
                    totals.add(shard.index, block, _tensors(ray.get(part)))
                running.popleft()
                running.extend(submit(shard) for shard in islice(waiting, 1))
                after_sequence(shard.done_after)

    def _submitter(self, work: FisherWork) -> Callable[[_Shard], tuple[_Shard, list[Any]]]:
        """Return a function that starts the task of a shard and returns it with references to its blocks' sums."""
        import ray

        task = ray.remote(_sum_blocks)
        needs = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_retries": _RETRIES}
        calibration = ray.put({name: tensor.numpy() for name, tensor in work.calibration.to_tensors().items()})
        device, device_map = worker_devices(work, self.gpus)
        model = _Model(str(work.folder), device, None if device_map is None else tuple(device_map.items()))

        def submit(shard: _Shard) -> tuple[_Shard, list[Any]]:
            options = task.options(num_returns=len(shard.group), **needs)
            sums = options.remote(model, self.threads, calibration, shard.index, shard.group, work.passes)
            return shard, sums if isinstance(sums, list) else [sums]

        return submit


@dataclass(frozen=True, slots=True)
class _Shard:
    """One task: which shard, of which blocks, and how many sequences are done before and after it."""

    index: int
    group: tuple[int, ...]
    done_before: int
    done_after: int


@dataclass(frozen=True, slots=True)
class _Model:
    """Which checkpoint a worker loads, and where to."""

    folder: str
    device: str
    device_map: tuple[tuple[str, int], ...] | None


def _missing_shards(work: FisherWork, totals: FisherTotals) -> Iterator[_Shard]:
    sequences = len(work.calibration)
    for number, group in enumerate(work.passes.groups):
        for index in range(totals.next_shard(group), shard_count(sequences)):
            rows = shard_rows(sequences, index)
            yield _Shard(index, group, number * sequences + rows.start, number * sequences + rows.stop)


def _sum_blocks(
    where: _Model,
    threads: int,
    calibration: dict[str, NDArray[np.int32]],
    shard: int,
    group: tuple[int, ...],
    passes: FisherPasses,
) -> list[BlockSums] | BlockSums:
    """Return the sums of every block of the group, in order; runs in a worker."""
    torch.set_num_threads(threads)
    tensors = {name: torch.tensor(array) for name, array in calibration.items()}
    model = _loaded_once(where)
    sums = sum_shard(model, Calibration.from_tensors(tensors), shard, group, passes)
    linears = model.outline.block_linears
    blocks = [{name: sums[name].cpu().numpy() for name in linears[block]} for block in group]
    return blocks if len(blocks) > 1 else blocks[0]


@functools.lru_cache(maxsize=1)
def _loaded_once(where: _Model) -> LoadedModel:
    device_map = None if where.device_map is None else dict(where.device_map)
    outline = read_outline(
        Path(where.folder).resolve(), allow_untested=True
    )  # whoever started the work has permitted it
    return load_model(outline, device=where.device, device_map=device_map)


def _tensors(sums: BlockSums) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in sums.items()}


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Raise what a task raised as itself, and Ray's own failures as a ``ResourceError``."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ZoError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"the Ray cluster gave up on a calibration shard: {type(error).__name__}: {error}",
            needed=f"workers that live through a shard; each was tried {_RETRIES + 1} times",
            next_step="give the workers more memory, then run the same command again; finished shards are kept",
        ) from error
