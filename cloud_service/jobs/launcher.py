"""Where a job's process runs: a port, and its one implementation, a local subprocess.

The subprocess has its own process group (a signal reaches all of it), an allow-listed environment without secrets, and
a standard input that the service holds open: when the service dies, however it dies, the process reads the end of it
and ends itself, so no orphan goes on computing. Memory of the accelerator is freed with the process.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloud_service.jobs.messages import LOCK_NAME, LOG_NAME, WORKSPACE_NAME, JobOrder, Message, parse_message
from shared.durable_files import disk_errors

RUN_JOB = (sys.executable, "-m", "cloud_service.jobs.run_job")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """A job's process is gone.

    Attributes:
        exit_status: As ``subprocess`` has it: negative is the number of the signal that ended it.
    """

    exit_status: int

    def __str__(self) -> str:
        if self.exit_status < 0:
            return f"the job's process was ended by {signal.Signals(-self.exit_status).name}"
        return f"the job's process ended with exit status {self.exit_status} and no result"


class JobProcess(Protocol):
    """A running job."""

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        """Return the next message, ``Ended`` after the last one, or None where none came in time."""

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
    """

    def __init__(self, environment: Mapping[str, str], command: Sequence[str] = RUN_JOB) -> None:
        self._environment = dict(environment)
        self._command = tuple(command)

    def start(self, folder: Path, order: JobOrder) -> JobProcess:
        """Start the process and send it its order.

        Raises:
            DiskError: The job's folder cannot be written.
        """
        with disk_errors(folder):
            (folder / WORKSPACE_NAME).mkdir(parents=True, exist_ok=True, mode=0o700)
            with (folder / LOG_NAME).open("ab") as log, (folder / LOCK_NAME).open("ab") as lock:
                process = subprocess.Popen(
                    [*self._command, str(folder), str(lock.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
        return _LocalProcess(process, order)


class _LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes], order: JobOrder) -> None:
        self._process = process
        self._messages: queue.Queue[Message | Ended] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"read-{process.pid}", daemon=True)
        self._reader.start()
        self._send(order)

    def receive(self, timeout_seconds: float) -> Message | Ended | None:
        try:
            return self._messages.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def interrupt(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._reader.join()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()

    def _send(self, order: JobOrder) -> None:
        assert self._process.stdin is not None  # noqa: S101 - asked for with PIPE
        try:
            self._process.stdin.write(order.model_dump_json().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            _logger.warning("job process %d ended before it read its order", self._process.pid)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                _logger.info("job process %d is already gone", self._process.pid)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - asked for with PIPE
        with self._process.stdout as lines:
            for line in lines:
                try:
                    self._messages.put(parse_message(line))
                except ValueError:
                    _logger.warning("job process %d said %.200r", self._process.pid, line)
        self._messages.put(Ended(self._process.wait()))
