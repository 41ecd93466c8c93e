"""Become another command that has no network: run as a script, with the standard library alone.

    python -I without_network.py STATUS confined|open COMMAND WORD …

A network namespace of its own holds nothing but a loopback device that is down; without the right to make one, a user
namespace of its own gives it. What fails before the command runs is written to the descriptor STATUS, which the command
does not inherit: an end of file without a word means that it runs. It is killed when its parent dies.
Linux only. References: unshare(2), user_namespaces(7), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

NEWUSER, NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    """Confine this process and become the command."""
    status, mode, *command = words
    step = "the network cannot be taken away"
    try:
        if sys.platform == "linux":
            _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if mode == "confined":
            _leave_network()
        step = f"{command[0]} cannot be run"
        os.set_inheritable(int(status), False)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(int(status), f"{step}: {error.strerror}".encode())
        sys.exit(127)


def _leave_network() -> None:
    if sys.platform != "linux":
        raise OSError(0, f"{sys.platform} has no network namespaces")
    user, group = os.getuid(), os.getgid()
    try:
        _call("unshare", NEWNET)
    except PermissionError:
        _call("unshare", NEWUSER | NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*map(ctypes.c_ulong, arguments)) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    main(sys.argv[1:])
