"""Renders a bundle's chat template in a process of its own, with limits of time, memory and length.

A template comes from a foreign model and is a program. The sandbox that it runs in (see ``template_process``) keeps it
from files and objects, but not from looping for minutes or building strings without end: the limits do. Costs one
Python process with transformers' renderer for as long as the template is in use, about 0.5 s to start it, and a
fraction of a millisecond for each conversation. No socket is opened: the two processes talk through pipes.
"""

from __future__ import annotations

import json
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import DataError, UnsupportedModel

_PROGRAM = Path(__file__).with_name("template_process.py")
_PIECE_BYTES = 64 * 1024
_BYTES_PER_CHARACTER = 12
"""What a character takes at most in JSON without letters beyond ASCII: two escapes of six bytes."""


@dataclass(frozen=True, slots=True)
class RenderingLimits:
    """What one conversation may take.

    Attributes:
        seconds: Processor time; a busy machine does not shorten it.
        patience_seconds: Time on the clock, after which a process that does not even compute is given up.
        memory_bytes: Memory of the rendering process, Python and transformers' renderer included (about 60 MB).
        characters: Length of the text.
    """

    seconds: int = 10
    patience_seconds: float = 120.0
    memory_bytes: int = 512 * 1024 * 1024
    characters: int = 8_000_000


class ChatTemplate:
    """One chat template; its process starts with the first conversation and ends with this object.

    Args:
        template: The program, in jinja2's language.
        limits: What one conversation may take.
    """

    def __init__(self, template: str, limits: RenderingLimits | None = None) -> None:
        self._template = template
        self._limits = limits or RenderingLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process, so that it imports what it needs while the caller does something else."""
        with self._lock:
            if self._process is None:
                self._start()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text of one conversation.

        Args:
            variables: ``messages``, ``tools`` and whatever else the template may use; plain JSON values.

        Raises:
            UnsupportedModel: The template cannot be rendered, does what the sandbox forbids, or exceeds a limit.
            DataError: The template refuses these messages.
        """
        with self._lock:
            answer = self._ask({"variables": dict(variables)})
        if "refused" in answer:
            raise DataError(f"the chat template refuses the messages: {answer['refused']}",
                            next_step="change the messages")  # fmt: skip
        if "failed" in answer:
            raise _failure(answer["failed"])
        return str(answer["text"])

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process or self._start()
        try:
            _write(process, question)
            line = self._read_line(process)
        except _GaveUp as error:
            self._end(process)
            raise _failure(str(error)) from None
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise _failure(self._why_ended(process))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        weakref.finalize(self, _kill, process)
        self._process = process
        _write(process, {"template": self._template, "limits": asdict(self._limits)})
        return process

    def _read_line(self, process: subprocess.Popen[bytes]) -> bytes:
        """Return the answer, or what came of it before the process ended."""
        assert process.stdout is not None  # noqa: S101 - asked for with PIPE
        line, end = bytearray(), time.monotonic() + self._limits.patience_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise _GaveUp(f"it does not answer within {self._limits.patience_seconds:g} s")
                piece = process.stdout.read1(_PIECE_BYTES)  # type: ignore[attr-defined]  # a BufferedReader
                if not piece:
                    break
                line += piece
                if len(line) > self._limits.characters * _BYTES_PER_CHARACTER:
                    raise _GaveUp(f"it writes more than {self._limits.characters} characters")
        return bytes(line)

    def _why_ended(self, process: subprocess.Popen[bytes]) -> str:
        self._end(process, wait_first=True)
        if process.returncode == -signal.SIGXCPU:
            return f"it takes more than {self._limits.seconds} s of processor time"
        if process.returncode in (-signal.SIGSEGV, -signal.SIGABRT):
            return f"it needs more than {self._limits.memory_bytes} bytes of memory, or nests too deeply"
        return f"its process ended with status {process.returncode}"

    def _end(self, process: subprocess.Popen[bytes], *, wait_first: bool = False) -> None:
        """End the process; the next conversation starts another one."""
        if wait_first:
            process.wait()
        _kill(process)
        self._process = None


class _GaveUp(Exception):
    """The process exceeds what the parent allows."""


def _write(process: subprocess.Popen[bytes], document: Mapping[str, Any]) -> None:
    assert process.stdin is not None  # noqa: S101 - asked for with PIPE
    process.stdin.write(json.dumps(document).encode() + b"\n")
    process.stdin.flush()


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None and not stream.closed:
            try:
                stream.close()
            except BrokenPipeError:  # what was not read any more is still in the buffer
                continue


def _failure(reason: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the bundle's chat template fails: {reason}",
        needed="a template that transformers renders, within limits of time, memory and length",
        next_step="use plain prompts instead of messages, or another bundle",
    )
