"""Linux' calls for confining a process that Python has no functions for. Every failure is an ``OSError``.

The numbers below 424 are those of x86-64 and AArch64 (``_NUMBERS``); newer calls have one number everywhere. Standard
library only, because it runs in the process that becomes the job. Knows nothing about jobs.
References: unshare(2), mount(2), open_tree(2), mount_setattr(2), pivot_root(2), prctl(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x8, 0x4000, 0x40000

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_IDMAP = 0x1, 0x2, 0x4, 0x00100000

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
CAP_DAC_OVERRIDE = 1

_NUMBERS = {
    "x86_64": {"umount2": 166, "pivot_root": 155, "mount": 165, "unshare": 272},
    "aarch64": {"umount2": 39, "pivot_root": 41, "mount": 40, "unshare": 97},
}
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MNT_DETACH = 0x2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_LAST_CAPABILITY = 63


def syscall(number: int, *arguments: object) -> int:
    """Make a system call and return its result. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *(_as_c(argument) for argument in arguments))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def prctl(option: int, value: int) -> None:
    """Set a property of this process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unshare(flags: int) -> None:
    """Move this process into new namespaces; into a new PID namespace, its next child."""
    syscall(_number("unshare"), flags)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system of the given kind, or change how mounts propagate."""
    syscall(_number("mount"), source, target, kind, flags, options)


def clone_mounts(path: str) -> int:
    """Return a descriptor of a detached copy of ``path`` with everything mounted below it."""
    return syscall(_OPEN_TREE, _AT_FDCWD, path, _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE)


def set_mount_attributes(descriptor: int, attributes: int, *, user_namespace: int = 0) -> None:
    """Set attributes of a detached copy and of everything below it.

    Args:
        descriptor: From ``clone_mounts``.
        attributes: ``ATTR_…``; none of those it has already is taken away.
        user_namespace: With ``ATTR_IDMAP``, the descriptor of the user namespace that says which owners to show.
    """
    record = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    syscall(_MOUNT_SETATTR, descriptor, "", _AT_EMPTY_PATH | _AT_RECURSIVE, record, len(record))


def make_root_read_only() -> None:
    """Make the mount at ``/`` read-only, not those below it."""
    record = struct.pack("=QQQQ", ATTR_RDONLY, 0, 0, 0)
    syscall(_MOUNT_SETATTR, _AT_FDCWD, "/", 0, record, len(record))


def attach_mounts(descriptor: int, target: str) -> None:
    """Put a detached copy at ``target``, and close the descriptor."""
    syscall(_MOVE_MOUNT, descriptor, "", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH)
    os.close(descriptor)


def pivot_root(folder: str) -> None:
    """Make ``folder``, which is a mount, the root, and let go of the old one."""
    os.chdir(folder)
    syscall(_number("pivot_root"), ".", ".")
    syscall(_number("umount2"), ".", _MNT_DETACH)
    os.chdir("/")


def raise_loopback() -> None:
    """Bring up the loopback interface of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def drop_capabilities(*, keep: int | None = None) -> None:
    """Let no program that this process executes have a capability, but ``keep``."""
    for capability in range(_LAST_CAPABILITY + 1):
        if capability != keep:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError:  # the kernel has fewer, or this process has none that it could drop
                continue


def _number(name: str) -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(38, f"no confinement on processors of the kind {machine}")
    return _NUMBERS[machine][name]


def _as_c(argument: object) -> object:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    return argument.encode() if isinstance(argument, str) else argument
