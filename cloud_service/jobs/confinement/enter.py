"""Becomes a job's process: ``python -m cloud_service.jobs.confinement.enter PLAN COMMAND…``, started by the launcher.

    guard       this process: dies with the service, passes on how the job ended, and leaves nothing behind
      first     first of the job's own process namespace, in its own file tree: when it ends, all in it end
        job     the command: its own user, no rights, limits

Without a tree (``landlock``, ``none``) there is no ``first``; the guard adopts what the job leaves behind and ends it.
Whatever the kernel refuses is told as a ``Failed`` message on standard output, in the words of ``messages``, and ends
the process with status 1: a job never runs less confined than its plan says. Starts in some 50 ms: standard library
only. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import NoReturn

from cloud_service.jobs.confinement import syscalls
from cloud_service.jobs.confinement.file_tree import device_paths, enter_tree
from cloud_service.jobs.confinement.landlock import restrict
from cloud_service.jobs.confinement.plan import JOB_TEMPORARY, ConfinementPlan

_STATUS = struct.Struct("=i")
ERROR_TYPE = "confinement-error"


def main(argv: list[str]) -> NoReturn:
    """Confine the command and pass on how it ends."""
    plan, command = ConfinementPlan.from_json(argv[0]), argv[1:]
    _die_with(plan.service_pid)
    step = "unshare"
    try:
        user_namespace = None
        if plan.mode == "user":
            step = "make a user namespace for showing owners"
            user_namespace = _namespace_of_owners(plan.uid)
        step = "make namespaces"
        _make_namespaces(plan)
    except OSError as error:
        _refuse(plan, step, error)
    if not plan.has_tree:
        if sys.platform == "linux":
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        _end_as(_run(lambda: _become(plan, command)), end_others=True)
    reading, writing = os.pipe()
    status = _run(lambda: _be_first(plan, command, user_namespace, writing), close=(writing,))
    told = os.read(reading, _STATUS.size)
    _end_as(_STATUS.unpack(told)[0] if told else status)


def _be_first(plan: ConfinementPlan, command: list[str], user_namespace: int | None, report: int) -> NoReturn:
    """Be the first process of the namespace: make the tree, start the job, tell the guard how it ended."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if plan.network != "all":
            syscalls.raise_loopback()
        enter_tree(plan, user_namespace)
    except OSError as error:
        _refuse(plan, "make a file tree", error)
    status = _run(lambda: _become(plan, command))
    os.write(report, _STATUS.pack(status))
    os._exit(0)


def _become(plan: ConfinementPlan, command: list[str]) -> NoReturn:
    """Give up every right that the job does not need, and execute its command."""
    step = "set limits"
    try:
        _set_limits(plan)
        step = "give up rights"
        _give_up_rights(plan)
        os.umask(0o077)
        step = "enter the workspace"
        os.chdir(plan.workspace)
        step = f"execute {command[0]}"
        home = JOB_TEMPORARY if plan.has_tree else plan.temporary
        places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME"), home)
        environment = {**os.environ, **places, "USER": "job", "LOGNAME": "job", **plan.environment}
        os.execve(command[0], command, environment)  # noqa: S606 - the launcher's own command
    except OSError as error:
        _refuse(plan, step, error)


def _set_limits(plan: ConfinementPlan) -> None:
    for name, wanted in plan.limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            continue
        _, most = resource.getrlimit(number)
        soft, hard = (resource.RLIM_INFINITY if limit is None else limit for limit in wanted)
        if most != resource.RLIM_INFINITY:
            hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(number, (soft, hard))


def _give_up_rights(plan: ConfinementPlan) -> None:
    if sys.platform != "linux":
        return
    # Without a tree root's jobs read what only its owner may, as the service does; Landlock says where.
    syscalls.drop_capabilities(keep=None if plan.has_tree else syscalls.CAP_DAC_OVERRIDE)
    if plan.mode == "user":
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if plan.mode == "none":
        return
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    devices = (*device_paths(), "/dev/shm")  # noqa: S108
    has_network = plan.network != "none" or plan.has_tree
    if plan.has_tree:
        writable: tuple[str, ...] = (*plan.writable, JOB_TEMPORARY, "/proc", *devices)
        with contextlib.suppress(OSError):  # the tree stands without it
            restrict(("/",), writable, has_network=has_network)
    else:
        readable = (*plan.system, *plan.readable, "/proc", "/sys")
        writable = (*plan.writable, plan.temporary, *devices)
        restrict(readable, writable, has_network=has_network, listable=plan.listable)


def _make_namespaces(plan: ConfinementPlan) -> None:
    if not plan.has_tree:
        return
    uid, gid = os.geteuid(), os.getegid()
    flags = syscalls.NEWNS | syscalls.NEWPID | syscalls.NEWIPC
    flags |= syscalls.NEWUSER if plan.mode == "namespace" else 0
    flags |= 0 if plan.network == "all" else syscalls.NEWNET
    syscalls.unshare(flags)
    if plan.mode == "namespace":
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")


def _namespace_of_owners(uid: int) -> int:
    """Return a user namespace in which root and ``uid`` have changed places; nothing runs in it."""
    reading, writing = os.pipe()
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(OSError):
            syscalls.unshare(syscalls.NEWUSER)
            os.write(writing, b"1")
            os.close(telling)
            os.read(told, 1)
            status = 0
        os._exit(status)
    os.close(writing)
    os.close(told)
    try:
        if not os.read(reading, 1):
            raise PermissionError(1, "no user namespace may be made")
        swapped = f"0 {uid} 1\n1 1 {uid - 1}\n{uid} 0 1\n"
        _write(f"/proc/{child}/uid_map", swapped)
        _write(f"/proc/{child}/gid_map", swapped)
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(telling)
        os.close(reading)
        os.waitpid(child, 0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _run(child: Callable[[], NoReturn], *, close: tuple[int, ...] = ()) -> int:
    """Fork ``child`` and return its wait status; meanwhile end what else ends, and leave SIGTERM to the job."""
    pid = os.fork()
    if pid == 0:
        child()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for descriptor in (0, 1, *close):
        os.close(descriptor)
    while True:
        ended, status = os.wait()
        if ended == pid:
            return status


def _end_as(status: int, *, end_others: bool = False) -> NoReturn:
    """End as the job ended: with its exit status, or by the same signal."""
    while end_others and (others := _children()):
        for other in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.wait()
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _children() -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        return [int(pid) for pid in file.read().split()]
    return []


def _refuse(plan: ConfinementPlan, step: str, error: OSError) -> NoReturn:
    """Say on standard output why the job does not run."""
    found = f"job isolation {plan.mode!r}: cannot {step}: {error.strerror or error}"
    failed = {"kind": "failed", "error": {"type": ERROR_TYPE, "message": found, "param": None}}
    os.write(1, json.dumps(failed).encode() + b"\n")
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
