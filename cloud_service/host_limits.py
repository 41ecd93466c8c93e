"""What this machine and this process's control groups allow: main memory, processors; and how many accelerators it has.

Imports nothing heavy.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")


def machine_bytes() -> int:
    """Return the main memory that this process may use at most: what the machine has, within its groups' limits."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *cgroup_limits()])


def accelerator_count() -> int:
    """Return how many CUDA devices the machine shows, whether or not their driver works."""
    devices = Path("/dev").glob("nvidia*")
    return sum(device.name.removeprefix("nvidia").isdigit() for device in devices)


def processor_count(membership: Path = _CGROUP_MEMBERSHIP, root: Path = _CGROUPS) -> int:
    """Return how many processors this process may keep busy: those it may run on, within its groups' quotas.

    Args:
        membership: As for ``cgroup_limits``.
        root: As for ``cgroup_limits``.
    """
    quotas = [math.ceil(quota) for quota in _processor_quotas(membership, root)]
    return max(1, min([own_processor_count(), *quotas]))


def own_processor_count() -> int:
    """Return how many processors this process may run on, whatever time it gets on them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_limits(membership: Path = _CGROUP_MEMBERSHIP, root: Path = _CGROUPS) -> list[int]:
    """Return the memory limits of the cgroups that this process is in, from its own up to the root, in bytes.

    Args:
        membership: The kernel's list of them, a line ``hierarchy:controllers:path`` each.
        root: Where they are mounted: version 2, and version 1's memory controller below it.
    """
    files = _group_files("memory", membership, root, "memory.max", "memory.limit_in_bytes")
    return [int(text) for file in files if (text := file.read_text().strip()).isdigit()]


def _processor_quotas(membership: Path, root: Path) -> Iterator[float]:
    """Yield the processors' worth of time that each group may use."""
    for file in _group_files("cpu", membership, root, "cpu.max", "cpu.cfs_quota_us"):
        quota, *period = file.read_text().split()
        if not period:  # version 1 has a file for each, and -1 for no quota
            period = [(file.parent / "cpu.cfs_period_us").read_text()]
        if quota.isdigit():
            yield int(quota) / int(period[0])


def _group_files(controller: str, membership: Path, root: Path, name: str, name_of_version_1: str) -> Iterator[Path]:
    """Yield the files of a controller in the groups of this process, from its own up to the root."""
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            place, wanted = root, name
        elif controller in controllers.split(","):
            place, wanted = root / controller, name_of_version_1
        else:
            continue
        # In a container the path may be the host's and not exist here; the root is then the container's own group.
        own = Path(path.lstrip("/"))
        yield from (file for group in (own, *own.parents) if (file := place / group / wanted).exists())
