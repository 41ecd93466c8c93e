"""The process of one job: ``python -m cloud_service.job_process.run_job FOLDER LOCK``, started by the launcher.

Reads its order from standard input and tells its progress on standard output, both as the JSON lines of ``messages``;
whatever libraries print goes to standard error, which is the job's log. Three things keep attempts from meeting:

* the end of standard input means that the service died: the whole process group is killed at once;
* an exclusive lock is held as long as the process lives, and waited for at the start: on the open file whose number is
  LOCK, so that the process needs no right to the folder that the file is in;
* SIGTERM raises ``Interrupted`` in the pipeline at its next report of progress, that is after its last checkpoint.

All that this process writes is in ``FOLDER/workspace``: the bundle's blobs, the report page, and the checkpoints from
which the next attempt continues where this one was killed. Nothing of it is visible to clients: the service copies the
blobs, signs and tags. Exit status 0 after a result, else the error's own; an unexpected error that would come again is
told like one of ours (``faults``).
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

from cloud_service.jobs.faults import fault_of
from cloud_service.jobs.messages import (
    STORE_NAME,
    WORKSPACE_NAME,
    Advanced,
    Failed,
    Finished,
    JobOrder,
    Line,
    MemoryPlanned,
    Noted,
    StageBegan,
)
from cloud_service.jobs.order_sources import source_policy
from cloud_service.jobs.record import Outcome, job_error
from cloud_service.memory_budget import MemoryBudget
from cloud_service.progress import ProgressSink
from shared.api import Stage
from shared.bundle.layout import ImageLayout
from shared.bundle.write import remove_unfinished
from shared.errors import Interrupted
from shared.file_lock import acquire


class JobProgress(ProgressSink, Protocol):
    """Receives the progress of a job."""

    def plan_memory(self, host_bytes: int) -> None:
        """Say how much main memory the work will use: what it may allocate is limited to little until then."""


class Work(Protocol):
    """What a job's process does; the real one is ``PipelineWork``, tests bring their own."""

    def fingerprint(self, order: JobOrder, workspace: Path, progress: JobProgress) -> str:
        """Return the fingerprint of the order's input as it is now, or was when the workspace was begun."""

    def prepare(self, order: JobOrder, workspace: Path, progress: JobProgress) -> Outcome:
        """Put the bundle's blobs and the report page into the workspace and return what they are."""


class PipelineWork:
    """The preparation pipeline."""

    def fingerprint(self, order: JobOrder, workspace: Path, progress: JobProgress) -> str:
        """Resolve the request without loading the model."""
        from cloud_service.pipeline.named_input import NamedInput
        from cloud_service.pipeline.opening.identity import resolve

        named = NamedInput.of_preparation(order.request)
        return resolve(named, source_policy(order), progress, workspace=workspace).fingerprint

    def prepare(self, order: JobOrder, workspace: Path, progress: JobProgress) -> Outcome:
        """Run all stages."""
        from cloud_service.pipeline.fisher.launchers.choose import choose_launcher
        from cloud_service.pipeline.opening.planned_model import Means
        from cloud_service.pipeline.prepare import prepare

        budget = MemoryBudget(order.max_accelerator_bytes, order.max_host_bytes)
        layout = ImageLayout(workspace / STORE_NAME)
        remove_unfinished(layout)
        made = prepare(
            order.request,
            workspace=workspace,
            layout=layout,
            progress=progress,
            sources=source_policy(order),
            means=Means(choose_launcher(order.launcher), budget, after_plan=progress.plan_memory),
        )
        return Outcome(
            name=made.name,
            tag=made.tag,
            manifest=made.manifest,
            size_bytes=made.size_bytes,
            fingerprint=made.fingerprint,
        )


class MessageProgress:
    """Tells progress as messages to the service; raises ``Interrupted`` at the first report after SIGTERM.

    Args:
        write: Takes a message.
        interval_seconds: Shortest time between two ``Advanced`` of a stage; the last one is never left out.
        is_stopping: Set by SIGTERM.
    """

    def __init__(self, write: Callable[[Line], None], interval_seconds: float, is_stopping: threading.Event) -> None:
        self._write = write
        self._interval_seconds = interval_seconds
        self._is_stopping = is_stopping
        self._total = 0
        self._next = 0.0

    def stage(self, stage: Stage, *, total: int = 0, unit: str = "") -> None:
        """Tell that a stage begins."""
        self._check()
        self._total, self._next = total, 0.0
        self._write(StageBegan(stage=stage, total=total, unit=unit))

    def advance(self, done: int) -> None:
        """Tell how far the stage is, not too often."""
        self._check()
        if time.monotonic() >= self._next or done == self._total:
            self._next = time.monotonic() + self._interval_seconds
            self._write(Advanced(done=done))

    def note(self, message: str) -> None:
        """Tell a person something."""
        self._check()
        self._write(Noted(message=message))

    def plan_memory(self, host_bytes: int) -> None:
        """Tell what the work will use, and lift this process's own limit: from now on the service watches."""
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self._write(MemoryPlanned(host_bytes=host_bytes))

    def _check(self) -> None:
        if self._is_stopping.is_set():
            raise Interrupted("asked to stop", next_step="nothing: the next attempt goes on from here")


def main(argv: Sequence[str] | None = None, *, work: Work | None = None) -> int:
    """Run the job and return the exit status."""
    folder, lock = sys.argv[1:] if argv is None else argv
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    write = _private_output()
    order = _read_order()
    is_stopping = _stop_on_sigterm()
    os.set_inheritable(int(lock), False)
    acquire(int(lock))
    progress = MessageProgress(write, order.progress_seconds, is_stopping)
    try:
        write(Finished(outcome=_run(Path(folder) / WORKSPACE_NAME, order, progress, work or PipelineWork())))
    except Interrupted as error:
        return error.exit_code
    except BaseException as error:
        traceback.print_exc()
        fault = fault_of(error)
        if fault is None:
            raise
        write(Failed(error=job_error(fault)))
        return fault.exit_code
    return 0


def _run(workspace: Path, order: JobOrder, progress: JobProgress, work: Work) -> Outcome:
    if order.prepared and (known := order.prepared.get(work.fingerprint(order, workspace, progress))) is not None:
        progress.note(f"the same input was prepared before: {known.manifest.digest}")
        return known
    return work.prepare(order, workspace, progress)


def _private_output() -> Callable[[Line], None]:
    """Return a function that writes messages to standard output, which nothing else in this process reaches any more.

    Progress may come from several threads, so lines are written one at a time.
    """
    descriptor, lock = os.dup(sys.stdout.fileno()), threading.Lock()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def write(line: Line) -> None:
        data = line.model_dump_json().encode() + b"\n"
        with lock:
            while data:
                data = data[os.write(descriptor, data) :]

    return write


def _read_order() -> JobOrder:
    """Read the order, and from then on end the process when standard input ends."""
    with open(0, "rb", buffering=0, closefd=False) as lines:
        order = JobOrder.model_validate_json(lines.readline())
    threading.Thread(target=_end_with_service, name="end-with-service", daemon=True).start()
    return order


def _end_with_service() -> None:
    while os.read(0, 4096):
        pass
    print("the service is gone: ending", file=sys.stderr, flush=True)  # noqa: T201 - the job's log
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(Interrupted.exit_code)


def _stop_on_sigterm() -> threading.Event:
    is_stopping = threading.Event()

    def note_signal(_number: int, _frame: FrameType | None) -> None:
        is_stopping.set()

    signal.signal(signal.SIGTERM, note_signal)
    return is_stopping


if __name__ == "__main__":
    sys.exit(main())
