"""Where a job's process runs: a port, and its one implementation, a local subprocess.

The subprocess has its own process group (a signal reaches all of it), an allow-listed environment without secrets, a
confinement (what it may see and touch), and a standard input that the service holds open: when the service dies,
however it dies, the process reads the end of it and ends itself, so no orphan continues to compute. Memory of the
accelerator is freed with the process. Whatever fails between the start and the order ends the process and everything
that it started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol

from pydantic_core import PydanticSerializationError

from cloud_service.jobs.confinement.choose import Confinement
from cloud_service.jobs.faults import PreparationFault
from cloud_service.jobs.limits import MAX_LINE_BYTES, MessageAllowance, Usage
from cloud_service.jobs.messages import (
    LOCK_NAME,
    LOG_NAME,
    TEMPORARY_NAME,
    WORKSPACE_NAME,
    Failed,
    JobOrder,
    Message,
    parse_message,
)
from cloud_service.jobs.process_usage import descendants, tree_usage
from cloud_service.jobs.record import job_error, printable
from shared.durable_files import disk_errors
from shared.errors import InvalidRequest

RUN_JOB = (sys.executable, "-m", "cloud_service.job_process.run_job")
_LOG_TAIL_BYTES = 4096
_MAX_LAST_WORDS = 300
_KILL_ROUNDS = 100
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A job's process is gone.

    Attributes:
        exit_status: As ``subprocess`` has it: negative is the number of the signal that ended it.
        last_words: The last line that it printed, where that may tell why it ended.
    """

    exit_status: int
    last_words: str = field(default="", compare=False)

    def __str__(self) -> str:
        said = f": {self.last_words}" if self.last_words else ""
        if self.exit_status < 0:
            return f"the job's process was ended by {signal.Signals(-self.exit_status).name}{said}"
        return f"the job's process ended with exit status {self.exit_status} and no result{said}"


class JobProcess(Protocol):
    """A running job."""

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        """Return the next message, ``Ended`` after the last one, or None where none came in time."""

    def usage(self) -> Usage:
        """Return what the process and all it started use now."""

    def interrupt(self) -> None:
        """Ask the process to stop at its next checkpoint."""

    def kill(self) -> None:
        """End the process at once and wait until it is gone; repeating it does nothing."""


class Launcher(Protocol):
    """Starts the processes of jobs."""

    def start(self, folder: Path, order: JobOrder) -> JobProcess:
        """Start the process for the job whose folder that is."""


class SubprocessLauncher:
    """Runs each job as a process of this machine.

    Args:
        environment: The whole environment of the process; see ``settings.job_environment``.
        command: What to run; the job's folder and the number of the open lock file are added as arguments.
        confinement: What the process may see and touch; None is everything that the service may.
        limits: The kernel's limits for the process; see ``JobLimits.for_kernel``.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        command: Sequence[str] = RUN_JOB,
        *,
        confinement: Confinement | None = None,
        limits: Mapping[str, tuple[int | None, int | None]] | None = None,
    ) -> None:
        self._environment = dict(environment)
        self._command = tuple(command)
        self._confinement = confinement
        self._limits = dict(limits or {})

    def start(self, folder: Path, order: JobOrder) -> JobProcess:
        """Start the process and send it its order.

        Raises:
            InvalidRequest: The request cannot be written down as UTF-8.
            ConfinementError: The process cannot be confined as asked for.
            DiskError: The job's folder cannot be written.
        """
        line = _encoded(order)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / WORKSPACE_NAME).mkdir(exist_ok=True, mode=0o700)
            shutil.rmtree(folder / TEMPORARY_NAME, ignore_errors=True)
            (folder / TEMPORARY_NAME).mkdir(exist_ok=True, mode=0o700)
            with (folder / LOG_NAME).open("ab") as log, (folder / LOCK_NAME).open("ab") as lock:
                log_begin = log.tell()
                command = [*self._command, str(folder), str(lock.fileno())]
                if self._confinement is not None:
                    command = self._confinement.command(folder, order, command, self._limits)
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
        return _LocalProcess(process, line, folder, log_begin)


def _encoded(order: JobOrder) -> bytes:
    try:
        return order.model_dump_json().encode() + b"\n"
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidRequest(
            f"the request cannot be written down: {printable(str(error), _MAX_LAST_WORDS)}",
            needed="text that is valid Unicode, without lone surrogates",
            next_step="POST a request without them",
        ) from error


class _LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes], order: bytes, folder: Path, log_begin: int) -> None:
        self._process = process
        self._folder = folder
        self._log_begin = log_begin
        self._messages: queue.Queue[Message | Ended] = queue.Queue()
        self._reader = threading.Thread(target=self._converse, args=(order,), name=f"read-{process.pid}", daemon=True)
        try:
            self._reader.start()
        except BaseException:
            self._kill_all()
            process.wait()
            raise

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        try:
            return self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def usage(self) -> Usage:
        with contextlib.suppress(FileNotFoundError):
            return replace(tree_usage(self._process.pid), log_bytes=(self._folder / LOG_NAME).stat().st_size)
        return tree_usage(self._process.pid)

    def interrupt(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._kill_all()
        self._reader.join()
        shutil.rmtree(self._folder / TEMPORARY_NAME, ignore_errors=True)

    def _kill_all(self) -> None:
        """Kill what the process started, wherever it went, and then the process, which adopts it meanwhile."""
        for _ in range(_KILL_ROUNDS):
            if self._process.returncode is not None or not (members := descendants(self._process.pid)):
                break
            for member in members:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                _logger.info("job process %d is already gone", self._process.pid)

    def _converse(self, order: bytes) -> None:
        """Send the order, then read messages until the process has ended; runs in a thread of its own."""
        assert self._process.stdin is not None  # noqa: S101 - asked for with PIPE
        assert self._process.stdout is not None  # noqa: S101 - asked for with PIPE
        try:
            with self._process.stdout as lines:
                self._send(order)
                self._read(lines)
        except Exception:
            _logger.exception("the conversation with job process %d failed", self._process.pid)
            self._kill_all()
        finally:
            status = self._process.wait()
            with contextlib.suppress(OSError):  # what was not sent to a process that is gone
                self._process.stdin.close()
            is_told_by_log = status not in (0, -signal.SIGKILL)
            self._messages.put(Ended(status, self._last_words() if is_told_by_log else ""))

    def _send(self, order: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - asked for with PIPE
        try:
            self._process.stdin.write(order)
            self._process.stdin.flush()
        except BrokenPipeError:
            _logger.warning("job process %d ended before it read its order", self._process.pid)

    def _read(self, lines: IO[bytes]) -> None:
        allowance, unreadable = MessageAllowance(time.monotonic()), 0
        while line := lines.readline(MAX_LINE_BYTES):
            if not line.endswith(b"\n") and len(line) >= MAX_LINE_BYTES:
                self._refuse(f"the job sent a message of more than {MAX_LINE_BYTES} bytes")
                return
            if not allowance.spend(time.monotonic()):
                self._refuse("the job sent more messages than can be written down")
                return
            try:
                self._messages.put(parse_message(line))
            except ValueError:
                unreadable += 1
                if unreadable <= 3:
                    _logger.warning("job process %d said %.200r", self._process.pid, line)

    def _refuse(self, found: str) -> None:
        """End a process that does not keep to the protocol; what it said and nobody has heard yet is dropped."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._messages.get_nowait()
        self._messages.put(
            Failed(error=job_error(PreparationFault(found, needed="messages of this project's own jobs")))
        )
        self._kill_all()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), (self._folder / LOG_NAME).open("rb") as log:
            log.seek(max(self._log_begin, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = [text for line in log.read().splitlines() if (text := line.decode(errors="replace").strip())]
            return printable(lines[-1], _MAX_LAST_WORDS) if lines else ""
        return ""
