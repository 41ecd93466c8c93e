"""How much a job may use, and what it is told when it uses more. Pure: who measures and who ends it are elsewhere.

    memory      before there is a plan, what reading a model's description takes; then the plan and a margin; never
                more than the setting, or what the machine has but a reserve for the service
    time        by stage, in one attempt
    processes   processes and threads
    files       the length of each file, of the log, and the messages that the service has to write down

Two fences: limits of the kernel (``JobLimits.for_kernel``), which stop one process at once and give it an error, and
what the service measures (``Usage``), which holds for all processes of a job together. A job that is ended by one of
them fails at its first attempt: it would only be ended again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.api import Stage
from shared.byte_sizes import format_bytes
from shared.errors import ResourceError

MAX_LINE_BYTES = 1 << 20
MAX_LOG_BYTES = 1 << 30
"""Of one message, and of what a job's process and its libraries print."""

_BASE_MEMORY_BYTES = 3 << 30
"""Importing torch and transformers takes 0.2 GiB; the largest tokenizers in use take below 1 GiB to read."""

_ACCELERATOR_MEMORY_BYTES = 4 << 30
_MARGIN_BYTES = 1 << 30
_MARGIN_SHARE = 4
_RESERVE_BYTES = 1 << 30
_RESERVE_SHARE = 16
_OPEN_FILES = 65536

_HOUR, _DAY = 3600.0, 86400.0
STAGE_SECONDS: Mapping[Stage, float] = {
    Stage.RESOLVING: 6 * _HOUR,
    Stage.DOWNLOADING: _DAY,
    Stage.CALIBRATING: 7 * _DAY,
    Stage.SELECTING: _DAY,
    Stage.QUANTIZING: 7 * _DAY,
    Stage.EVALUATING: 7 * _DAY,
    Stage.PUBLISHING: _HOUR,
}
"""What a stage may take where the settings do not say otherwise: several times what the largest models need."""

_BURST_MESSAGES = 5000
_MESSAGES_PER_SECOND = 50.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What all processes of a job use together.

    Attributes:
        memory_bytes: Memory that is theirs alone: no pages of files, which the kernel can take back.
        tasks: Processes and threads.
        log_bytes: Length of the log.
    """

    memory_bytes: int = 0
    tasks: int = 0
    log_bytes: int = 0


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What each job of a service may use.

    Attributes:
        memory_bytes: Main memory at most, see ``memory_ceiling``; None watches none.
        accelerators: How many there are on the machine.
        tasks: Processes and threads.
        file_bytes: Length of any file that a job writes.
        stage_seconds: Seconds in a stage, where they are not those of ``STAGE_SECONDS``.
    """

    memory_bytes: int | None = None
    accelerators: int = 0
    tasks: int = 4096
    file_bytes: int = 64 << 30
    stage_seconds: Mapping[Stage, float] = field(default_factory=dict)

    def for_kernel(self) -> dict[str, tuple[int | None, int | None]]:
        """Return the kernel's limits for each process of a job, name → soft and hard limit.

        The soft limit of memory is the one before the plan; the pipeline lifts it when there is one. With an
        accelerator it is left open, because drivers reserve addresses that are never used.
        """
        is_open = self.memory_bytes is None or self.accelerators
        memory = None if is_open else base_memory(self.memory_bytes or 0, accelerators=0)
        return {
            "DATA": (memory, None),
            "FSIZE": (self.file_bytes, self.file_bytes),
            "NPROC": (self.tasks, self.tasks),
            "NOFILE": (_OPEN_FILES, _OPEN_FILES),
            "CORE": (0, 0),
        }


def memory_ceiling(machine_bytes: int, max_host_bytes: int | None) -> int:
    """Return the most that any job may use of a machine's memory: the setting, or all but a reserve."""
    if max_host_bytes is not None:
        return max_host_bytes
    return machine_bytes - max(min(_RESERVE_BYTES, machine_bytes // 4), machine_bytes // _RESERVE_SHARE)


def base_memory(ceiling: int, *, accelerators: int) -> int:
    """Return what a job may use before its plan is known; an accelerator's driver takes host memory too."""
    return min(ceiling, _BASE_MEMORY_BYTES + accelerators * _ACCELERATOR_MEMORY_BYTES)


def planned_memory(ceiling: int, planned_bytes: int) -> int:
    """Return what a job may use whose plan is known: the plan, a quarter more, and 1 GiB."""
    return min(ceiling, planned_bytes + planned_bytes // _MARGIN_SHARE + _MARGIN_BYTES)


def usage_excess(usage: Usage, *, memory_bytes: int | None, tasks: int) -> ResourceError | None:
    """Return the error of a job that uses more than it may, or None."""
    if memory_bytes is not None and usage.memory_bytes > memory_bytes:
        return ResourceError(
            f"the job uses {format_bytes(usage.memory_bytes)} of main memory",
            needed=f"at most {format_bytes(memory_bytes)}: its plan and a margin, or before that what reading takes",
            next_step="check the model's tokenizer and configuration; the operator sets the most by --max-host-bytes",
        )
    if usage.tasks > tasks:
        return ResourceError(
            f"the job runs {usage.tasks} processes and threads",
            needed=f"at most {tasks}",
            next_step="ask the operator; ZO_CLOUD_MAX_JOB_TASKS sets the number",
        )
    if usage.log_bytes > MAX_LOG_BYTES:
        return ResourceError(
            f"the job has written {format_bytes(usage.log_bytes)} to its log",
            needed=f"at most {format_bytes(MAX_LOG_BYTES)}",
            next_step="check the model: a sound one writes a few lines; the operator finds them in the job's log",
        )
    return None


def time_excess(stage: Stage, seconds: float, allowed: Mapping[Stage, float]) -> ResourceError | None:
    """Return the error of a job that has been in a stage for too long, or None.

    Args:
        stage: The stage.
        seconds: How long this attempt has been in it.
        allowed: The settings' seconds by stage; ``STAGE_SECONDS`` where they say nothing.
    """
    limit = allowed.get(stage, STAGE_SECONDS[stage])
    if seconds <= limit:
        return None
    return ResourceError(
        f"the stage {stage} has taken more than {limit:g} seconds",
        needed=f"an end of the stage within {limit:g} seconds",
        next_step=f"ask the operator; ZO_CLOUD_STAGE_SECONDS='{{\"{stage}\": SECONDS}}' allows more",
    )


class MessageAllowance:
    """How many messages a job may send: some thousands at once, and then fifty a second.

    Args:
        now: The time in seconds.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._spent = 0

    def spend(self, now: float) -> bool:
        """Count a message and return whether it was still allowed."""
        self._spent += 1
        return self._spent <= _BURST_MESSAGES + _MESSAGES_PER_SECOND * (now - self._began)
