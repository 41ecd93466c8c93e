"""Runs every command of ``zo-device`` on a person's rows, without a network, under strace, and tells what they touched.

All commands run in one process, so importing torch is paid for once; before each one the process makes an anonymous
file of the command's name, which is how the trace is divided. Run as a script, it is that process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CANARY = "kumquat-7f3a9"
_SYSTEM_CALLS = "connect,socket,bind,listen,sendto,sendmsg,sendmmsg,memfd_create"
_MARK = re.compile(r'memfd_create\("command:([^"]+)"')
_FORBIDDEN = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg|listen)\(|\bsocket\((?!AF_UNIX\b)")


@dataclass(frozen=True, slots=True)
class Traced:
    """What one command did.

    Attributes:
        exit_code: Its own.
        said: What it printed, to both streams.
        network_calls: Lines of the trace that a command without a network has no use for.
    """

    exit_code: int
    said: str
    network_calls: list[str]


def trace(commands: Mapping[str, Sequence[str]], folder: Path, typed: str) -> dict[str, Traced]:
    """Run commands in a network namespace without interfaces, under strace, and return what each did.

    Args:
        commands: Name → words, in their order.
        folder: Becomes home, temporary folder and cache of the process.
        typed: What each command finds on standard input.
    """
    for name in ("home", "tmp", "cache"):
        (folder / name).mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "ZO_DEVICE_HOME": str(folder / "home" / "device"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
        "LOGNAME": "person",  # as every login sets it; else libraries ask the system's name service, by a local socket
    }
    log = folder.parent / f"{folder.name}.trace"
    program = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    done = subprocess.run(
        ["unshare", "--net", "strace", "-f", "--seccomp-bpf", "-e", f"trace={_SYSTEM_CALLS}", "-o", str(log), *program],
        input=json.dumps({"commands": dict(commands), "typed": typed}),
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    outcomes = json.loads(done.stdout)
    calls = _network_calls(log.read_text(errors="replace"))
    return {name: Traced(*outcomes[name], calls.get(name, [])) for name in commands}


def _network_calls(log: str) -> dict[str, list[str]]:
    """Return the forbidden lines of a trace by command; what comes before the first one is listed under ``start``."""
    found: dict[str, list[str]] = {}
    name = "start"
    for line in log.splitlines():
        if mark := _MARK.search(line):
            name = mark.group(1)
        elif _FORBIDDEN.search(line):
            found.setdefault(name, []).append(line)
    return found


def files_with(canary: str, folder: Path) -> list[Path]:
    """Return the files below a folder, relative to it, whose bytes or name hold a text, also as UTF-16."""
    wanted = [canary.encode(), canary.encode("utf-16-le")]
    return sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.is_file() and (canary in path.name or any(text in path.read_bytes() for text in wanted))
    )


def _run_all(order: Mapping[str, object]) -> dict[str, tuple[int, str]]:
    from device_client.cli import main

    outcomes = {}
    commands, typed = order["commands"], str(order["typed"])
    assert isinstance(commands, dict)
    for name, words in commands.items():
        os.close(os.memfd_create(f"command:{name}"))
        said = io.StringIO()
        sys.stdin = io.StringIO(typed)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = main(words)
        outcomes[name] = (code, said.getvalue())
    return outcomes


if __name__ == "__main__":
    outcomes = _run_all(json.loads(sys.stdin.read()))
    os.close(os.memfd_create("command:end"))
    sys.__stdout__.write(json.dumps(outcomes))  # type: ignore[union-attr]
