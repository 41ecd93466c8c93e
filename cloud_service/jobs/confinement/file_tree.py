"""A file tree of its own for a job's process: copies of mounts in an empty root, everything else is not there.

    /                       tmpfs, read-only at the end: holds links and the folders that lead to the rest
    system, readable        read-only copies
    hidden                  empty folders over what a readable folder would show
    workspace, writable     copies that can be changed
    /tmp/job                the job's temporary folder on the disk, by a name that is short enough for sockets
    /dev/shm                a small tmpfs
    /dev, /proc, /sys       a handful of devices, the job's own processes, read-only facts about the machine

Parents of copies are made in the root, so a model folder is reached even below a folder that is private. Owners are
shown as another user's where ``user_namespace`` is given: the job's user then owns what the service's user owns, and
nothing on the disk changes hands. Needs Linux 5.12 and CAP_SYS_ADMIN in a namespace of mounts. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cloud_service.jobs.confinement import syscalls
from cloud_service.jobs.confinement.plan import JOB_TEMPORARY, ConfinementPlan

_NO_PROGRAMS_OF_OTHERS = syscalls.MS_NOSUID | syscalls.MS_NODEV


def enter_tree(plan: ConfinementPlan, user_namespace: int | None) -> None:
    """Make the tree and make it this process's root.

    Args:
        plan: What it holds.
        user_namespace: Descriptor of the namespace whose owners are shown; None shows them as they are.

    Raises:
        OSError: The kernel refuses, or a file system cannot show other owners.
    """
    mask = os.umask(0o022)  # whoever the job runs as has to pass the folders that lead to the copies
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    steps = _steps(plan, user_namespace)
    root = plan.temporary
    syscalls.mount("tmpfs", root, "tmpfs", _NO_PROGRAMS_OF_OTHERS, "mode=755,size=16m")
    for target, put in sorted(steps, key=lambda step: step[0].count("/")):
        put(root + target)
    for link, target in plan.links:
        place = Path(root + link)
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(target)
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        Path(root, "dev", name).symlink_to(f"/proc/self/{target}")
    syscalls.pivot_root(root)
    syscalls.make_root_read_only()
    os.umask(mask)


def _steps(plan: ConfinementPlan, user_namespace: int | None) -> list[tuple[str, Callable[[str], None]]]:
    """Return what to put where. Copies are taken here, before anything is covered."""
    fixed = syscalls.ATTR_RDONLY | syscalls.ATTR_NOSUID | syscalls.ATTR_NODEV
    changeable = syscalls.ATTR_NOSUID | syscalls.ATTR_NODEV
    steps = [(path, _copy(path, fixed)) for path in (*plan.system, "/sys") if Path(path).exists()]
    steps += [(path, _copy(path, fixed, user_namespace)) for path in plan.readable if Path(path).exists()]
    steps += [(path, _copy(path, changeable, user_namespace, is_needed=True)) for path in plan.writable]
    steps += [(path, _empty) for path in plan.hidden]
    steps += [(path, _copy(path, syscalls.ATTR_NOSUID)) for path in device_paths()]
    steps.append((JOB_TEMPORARY, _copy(plan.temporary, changeable, user_namespace, is_needed=True)))
    steps.append(("/dev/shm", lambda place: _tmpfs(place, plan.shared_memory_bytes)))  # noqa: S108
    steps.append(("/proc", _processes(_copy("/proc", syscalls.ATTR_NOSUID))))
    return steps


def device_paths() -> list[str]:
    """Return the devices that a job may use: harmless ones, and accelerators."""
    harmless = [Path("/dev", name) for name in ("null", "zero", "full", "random", "urandom")]
    return [str(path) for path in (*harmless, *sorted(Path("/dev").glob("nvidia*"))) if path.exists()]


def _copy(
    path: str, attributes: int, user_namespace: int | None = None, *, is_needed: bool = False
) -> Callable[[str], None]:
    """Return what puts a copy of ``path`` somewhere; ``is_needed``: with the owners of the namespace or not at all."""
    copy = syscalls.clone_mounts(path)
    if user_namespace is not None:
        try:
            syscalls.set_mount_attributes(copy, syscalls.ATTR_IDMAP, user_namespace=user_namespace)
        except OSError as error:
            if is_needed:
                raise OSError(error.errno, f"the file system of {path} cannot show other owners") from error
    syscalls.set_mount_attributes(copy, attributes)
    is_folder = Path(path).is_dir()

    def put(place: str) -> None:
        _make_place(Path(place), is_folder=is_folder)
        syscalls.attach_mounts(copy, place)

    return put


def _make_place(place: Path, *, is_folder: bool) -> None:
    """Make a folder or file to mount on; what is already there, in a copy that holds it, is used."""
    if os.path.lexists(place):
        return
    (place if is_folder else place.parent).mkdir(parents=True, exist_ok=True)
    if not is_folder:
        place.touch()


def _empty(place: str) -> None:
    if Path(place).is_dir():
        syscalls.mount("tmpfs", place, "tmpfs", _NO_PROGRAMS_OF_OTHERS, "mode=755,size=1m")


def _tmpfs(place: str, size: int) -> None:
    Path(place).mkdir(parents=True, exist_ok=True)
    syscalls.mount("tmpfs", place, "tmpfs", _NO_PROGRAMS_OF_OTHERS, f"mode=1777,size={size}")


def _processes(put_copy: Callable[[str], None]) -> Callable[[str], None]:
    def put(place: str) -> None:
        Path(place).mkdir(parents=True, exist_ok=True)
        try:
            syscalls.mount("proc", place, "proc", _NO_PROGRAMS_OF_OTHERS | syscalls.MS_NOEXEC)
        except OSError:  # in a container that hides parts of /proc, a new one may not show more
            put_copy(place)

    return put
