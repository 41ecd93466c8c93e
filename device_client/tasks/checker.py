"""A person's own command that says how good an answer is: one process for a whole run, a line for each answer.

    to it     {"prompt": "…", "answer": "…", "row": {…}}      one JSON object a line: what was asked, what the model
                                                              wrote, and the row's own fields as they are in the file
    from it   0.75                                            one number a line, −10⁶ … 10⁶, higher is better

The command must answer each line before the next, flush what it prints, and give the same number for the same line: a
run that continues repeats its questions. It ends at the end of its input. It has no network (``without_network``); that
it may have one is asked for by name, and needed where the system cannot take it away. Nothing else is kept from it: it
runs with the rights of the person who named it.

Costs a line each way. What it writes to stderr is shown where it fails. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from device_client.tasks import without_network
from shared.errors import Conflict, DataError, InvalidRequest, ResourceError
from shared.tasks.examples import Example
from shared.terminal_text import printable

LARGEST = 1e6
TIMEOUT_SECONDS = 30.0
_LONGEST_LINE = 1000
_SHOWN_STDERR = 2000


@dataclass(frozen=True, slots=True)
class CheckerCommand:
    """A command that was found.

    Attributes:
        text: As it was typed.
        words: As a shell would split it; no shell runs it.
        digest: Of the command's words, and of what stands in the files that they name.
    """

    text: str
    words: tuple[str, ...]
    digest: str


def checker_command(text: str) -> CheckerCommand:
    """Return the command that ``text`` names.

    Raises:
        InvalidRequest: It cannot be split into words, or there is no such command.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidRequest(
            f"--checker {text!r}: {error}", needed="a command and its arguments", param="checker"
        ) from error
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise InvalidRequest(
            f"--checker {text!r}: there is no such command",
            needed="a program that is in the PATH, or its path, and may be executed",
            next_step='for a script: --checker "python3 checker.py"',
            param="checker",
        )
    digest = hashlib.sha256()
    for word in (program, *words[1:]):
        path = Path(word)
        content = path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else word.encode()
        digest.update(hashlib.sha256(content).digest())
    return CheckerCommand(text, tuple(words), f"sha256:{digest.hexdigest()}")


def checker_of_run(text: str, digest: str, name: str) -> CheckerCommand:
    """Return the command that a run was tuned with, as long as it is still the same.

    Raises:
        InvalidRequest: There is no such command any more.
        Conflict: A file that it names has changed.
    """
    command = checker_command(text)
    if command.digest != digest:
        raise Conflict(
            f"the run {name} was tuned with the checker {text!r}, whose files have changed since",
            needed=f"the files of {digest}",
            next_step="bring them back, or measure without --run and with --checker",
        )
    return command


def checking(
    command: CheckerCommand | None, *, timeout_seconds: float, may_connect: bool
) -> AbstractContextManager[Checker | None]:
    """Return the running command, to be entered; where there is none, something that enters as None."""
    if command is None:
        return nullcontext()
    return Checker(command, timeout_seconds=timeout_seconds, may_connect=may_connect)


class Checker:
    """The running command; a context manager that starts and ends it.

    Args:
        command: Which.
        timeout_seconds: For each answer.
        may_connect: Whether it may use the network.
    """

    def __init__(
        self, command: CheckerCommand, *, timeout_seconds: float = TIMEOUT_SECONDS, may_connect: bool = False
    ) -> None:
        self._command, self._timeout, self._may_connect = command, timeout_seconds, may_connect
        self._unread = b""

    def __enter__(self) -> Checker:
        """Start the command.

        Raises:
            ResourceError: Its network cannot be taken away.
            InvalidRequest: It cannot be run.
        """
        self._stderr = tempfile.TemporaryFile()
        status, told = os.pipe()
        mode = "open" if self._may_connect else "confined"
        launcher = [sys.executable, "-I", without_network.__file__, str(told), mode]
        self._process = subprocess.Popen(
            [*launcher, *self._command.words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            bufsize=0, pass_fds=[told], start_new_session=True,
        )  # fmt: skip
        os.close(told)
        with os.fdopen(status, "rb") as waiting:
            fault = waiting.read().decode(errors="replace")
        if fault:
            self.__exit__(None, None, None)
            raise self._not_started(fault)
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the command, and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def __call__(self, example: Example, prompt: str, answer: str) -> float:
        """Return the command's number for an answer.

        Args:
            example: The row.
            prompt: What was asked, as text.
            answer: What the model wrote.

        Raises:
            DataError: The command ended, was silent for too long, or printed something else than one number.
        """
        line = json.dumps({"prompt": prompt, "answer": answer, "row": dict(example.row)}).encode() + b"\n"
        said = self._exchange(line, example.place)
        try:
            number = float(said)
        except ValueError:
            number = math.nan
        if not abs(number) <= LARGEST:
            shown = printable(said[:80].decode(errors="replace"))
            raise self._failed(example.place, f"printed {shown!r}", f"one number from {-LARGEST:g} to {LARGEST:g}")
        return number

    def _exchange(self, line: bytes, place: str) -> bytes:
        """Return the line that the command prints for a line."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101, PT018  both are pipes
        end = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as waiting:
            waiting.register(stdout, selectors.EVENT_READ)
            if waiting.select(0):
                self._read(stdout, place)
            if self._unread:
                raise self._failed(place, "printed more than one line for an answer", "one line for each line")
            waiting.register(stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._unread:
                ready = waiting.select(max(0.0, end - time.monotonic()))
                if not ready:
                    raise self._failed(
                        place, f"printed no line within {self._timeout:g} s", "a number, flushed, for each line"
                    )
                for key, _ in ready:
                    if key.fileobj is stdout:
                        self._read(stdout, place)
                    else:
                        line = line[self._written(stdin, line, place) :]
                        if not line:
                            waiting.unregister(stdin)
        said, _, self._unread = self._unread.partition(b"\n")
        return said

    def _read(self, stdout: Any, place: str) -> None:
        found = stdout.read(_LONGEST_LINE)
        if not found:
            raise self._ended(place)
        self._unread += found
        if len(self._unread) > _LONGEST_LINE:
            raise self._failed(place, f"printed more than {_LONGEST_LINE} bytes", "one number for each line")

    def _written(self, stdin: Any, line: bytes, place: str) -> int:
        try:
            return stdin.write(line) or 0
        except BrokenPipeError:
            raise self._ended(place) from None

    def _ended(self, place: str) -> DataError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._timeout)
        status = self._process.returncode
        how = "closed its output" if status is None else f"ended with status {status}"
        return self._failed(place, how, "one that answers every line until its input ends")

    def _failed(self, place: str, found: str, needed: str) -> DataError:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _SHOWN_STDERR))
        said = printable(self._stderr.read().decode(errors="replace")).strip()
        return DataError(
            f"{place}: the checker {self._command.text!r} {found}" + (f"; it wrote to stderr: {said}" if said else ""),
            needed=needed,
            next_step="correct the checker and run the same command again; in Python: print(number, flush=True), and "
            "--checker-timeout where it needs longer",
            param="checker",
        )

    def _not_started(self, fault: str) -> ResourceError | InvalidRequest:
        if fault.startswith("the network"):
            return ResourceError(
                f"the checker {self._command.text!r} would see your rows with a network: {fault}",
                needed="Linux, and the right to make a network or user namespace",
                next_step="--checker-may-connect if you trust it with them",
            )
        return InvalidRequest(
            f"--checker: {fault}", needed="a command that can be run", next_step="try it by hand", param="checker"
        )
