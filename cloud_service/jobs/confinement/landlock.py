"""Landlock: an allow-list of paths that a process gives itself and can never widen; no privilege is needed.

    paths       read and execute below some, everything below others, nothing elsewhere
    network     TCP refused where asked for and the kernel can (5.19 and 6.7 are too old; ABI 4)
    others      processes outside cannot be traced; from ABI 6 on neither signalled nor reached by abstract sockets

Standard library only. What it cannot do: hide that a path exists, refuse UDP, or restrict what is open already.
References: landlock(7), Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable

from cloud_service.jobs.confinement.syscalls import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_RIGHTS_OF_A_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_RIGHTS_BEFORE = {1: _REFER, 2: _TRUNCATE, 3: _IOCTL_DEVICE, 4: _IOCTL_DEVICE}
"""The first right that an ABI does not know; it knows all that come before."""

_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_TCP_SINCE, _SCOPES_SINCE = 4, 6


def landlock_version() -> int:
    """Return the ABI of this kernel's Landlock. Raises OSError where it has none."""
    return syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)


def restrict(
    readable: Iterable[str], writable: Iterable[str], *, has_network: bool, listable: Iterable[str] = ()
) -> None:
    """Allow this process, and what it starts, nothing but what is listed. ``no_new_privs`` must be set.

    Args:
        readable: Folders and files that may be read and executed; those that do not exist are left out.
        writable: Folders and files that may be changed too.
        has_network: Whether TCP is allowed.
        listable: Folders below which names may be read, and nothing else.

    Raises:
        OSError: The kernel has no Landlock, or it is not enabled.
    """
    version = landlock_version()
    known = (_RIGHTS_BEFORE.get(version, _IOCTL_DEVICE << 1)) - 1
    tcp = 0 if has_network or version < _TCP_SINCE else _TCP
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", known, tcp, scopes)
    length = 8 if version < _TCP_SINCE else 16 if version < _SCOPES_SINCE else 24
    rules = syscall(_CREATE_RULESET, attributes[:length], length, 0)
    try:
        for path in readable:
            _allow(rules, path, _READ & known)
        for path in listable:
            _allow(rules, path, _READ_DIR)
        for path in writable:
            _allow(rules, path, known)
        syscall(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _RIGHTS_OF_A_FILE
        syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)
