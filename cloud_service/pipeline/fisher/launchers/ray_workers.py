"""What a Ray worker computes with, and how many of them this machine's memory holds.

    devices    Ray shows a task the accelerators that it reserved as 0, 1, …, whatever the driver calls its own
    memory     workers × (network, accumulators, libraries)  +  (workers + 1) × sums of a shard in the object store

Pure functions of the work and the choice. Knows nothing about Ray.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from cloud_service.pipeline.fisher.launchers.local import FisherWork
from shared.byte_sizes import format_bytes
from shared.errors import ResourceError


def worker_devices(work: FisherWork, gpus: int) -> tuple[str, Mapping[str, int] | None]:
    """Return the torch device of a worker, and the map of a model that is spread over several of its accelerators.

    Args:
        work: Planned for the driver's devices; only how many it spreads over counts here.
        gpus: Accelerators that Ray reserves for a worker; 0 computes on the processor.

    Raises:
        ResourceError: The plan spreads the model over more accelerators than a worker has.
    """
    if not gpus:
        return "cpu", None
    places = sorted(set((work.device_map or {}).values()), key=str)
    if len(places) <= 1:
        return "cuda", None
    if len(places) > gpus:
        raise ResourceError(
            f"workers of {gpus} accelerators for a model that is planned on {len(places)}",
            needed=f"{len(places)} accelerators for each worker",
            next_step=f"give --ray-worker-gpus {len(places)}, or a larger --max-accelerator-bytes",
            param="ray_worker_gpus",
        )
    return "cuda", {module: places.index(place) for module, place in (work.device_map or {}).items()}


def check_memory(work: FisherWork, workers: int) -> None:
    """Refuse to start more workers on this machine than its memory holds; does nothing where that is not known.

    Raises:
        ResourceError: They need more than the budget; the message names the most that fit.
    """
    if work.worker_host_bytes is None or work.host_budget is None:
        return
    shard = largest_shard_bytes(work)
    needed = workers * work.worker_host_bytes + (workers + 1) * shard
    if needed <= work.host_budget:
        return
    most = max(0, (work.host_budget - shard) // (work.worker_host_bytes + shard))
    raise ResourceError(
        f"{workers} Ray workers in {format_bytes(work.host_budget)} of main memory",
        needed=f"{format_bytes(needed)}: {workers} networks, and the sums of {workers + 1} shards",
        next_step=f"give --ray-workers {most}" if most else "give --launcher local, or a cluster by --ray-address",
        param="ray_workers",
    )


def check_network_is_whole(work: FisherWork) -> None:
    """Refuse a plan that reads the network block by block: workers hold it whole.

    Raises:
        ResourceError: It does.
    """
    if work.passes.streamed_shards is not None:
        raise ResourceError(
            "a plan that reads the network block by block, as this machine's memory does not hold it",
            needed="memory for the whole network, for each Ray worker",
            next_step="give --launcher local, or a larger --max-host-bytes where there is more memory",
            param="launcher",
        )


def largest_shard_bytes(work: FisherWork) -> int:
    """Return the bytes of one shard's float32 sums, for the largest group of blocks."""
    shapes, linears = work.outline.shapes, work.outline.block_linears
    return max(4 * sum(math.prod(shapes[name]) for b in group for name in linears[b]) for group in work.passes.groups)
