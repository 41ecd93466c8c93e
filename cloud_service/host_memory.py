"""How much main memory this machine and this process's control groups allow, and how many accelerators there are.

Imports nothing heavy.
"""

from __future__ import annotations

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


def cgroup_limits(membership: Path = _CGROUP_MEMBERSHIP, root: Path = _CGROUPS) -> list[int]:
    """Return the memory limits of the cgroups that this process is in, from its own up to the root, in bytes.

    Args:
        membership: The kernel's list of them, a line ``hierarchy:controllers:path`` each.
        root: Where they are mounted: version 2, and version 1's memory controller below it.
    """
    limits: list[int] = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            limits += _limits_above(root, path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits_above(root / "memory", path, "memory.limit_in_bytes")
    return limits


def _limits_above(root: Path, path: str, name: str) -> Iterator[int]:
    # In a container the path may be the host's and not exist here; the root is then the container's own group.
    own = Path(path.lstrip("/"))
    for group in (own, *own.parents):
        limit = root / group / name
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            yield int(text)
