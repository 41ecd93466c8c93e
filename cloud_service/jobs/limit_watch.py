"""Watches one attempt: what it uses, and how long it has been in each stage. See ``limits`` for what is allowed.

Costs a look at the machine's processes every quarter of a second. Knows nothing about how an attempt is ended.
"""

from __future__ import annotations

from collections.abc import Callable

from cloud_service.jobs.limits import (
    JobLimits,
    Usage,
    base_memory,
    planned_memory,
    time_excess,
    usage_excess,
)
from shared.api import Stage
from shared.errors import ResourceError

_SECONDS_BETWEEN_LOOKS = 0.25


class LimitWatch:
    """The watch over one attempt.

    Args:
        limits: What is allowed.
        has_workers: Whether the work is done by processes that the plan does not count: then a planned job may use
            all that any job may.
        now: The time in seconds.
    """

    def __init__(self, limits: JobLimits, *, has_workers: bool, now: float) -> None:
        self._limits = limits
        self._has_workers = has_workers
        self._memory_bytes = (
            None if limits.memory_bytes is None else base_memory(limits.memory_bytes, accelerators=limits.accelerators)
        )
        self._stage = Stage.RESOLVING
        self._began = now
        self._seconds: dict[Stage, float] = {}
        self._next_look = now

    def enter(self, stage: Stage, now: float) -> None:
        """Note that a stage begins; what an earlier visit to it took still counts."""
        self._seconds[self._stage] = self._seconds_in_stage(now)
        self._stage, self._began = stage, now

    def plan_memory(self, host_bytes: int) -> None:
        """Allow what the plan says and a margin, never more than any job may use."""
        if (most := self._limits.memory_bytes) is not None:
            self._memory_bytes = most if self._has_workers else planned_memory(most, host_bytes)

    def excess(self, usage: Callable[[], Usage], now: float) -> ResourceError | None:
        """Return the error of an attempt that uses more than it may, or None; does not look too often.

        Args:
            usage: Measures what the attempt uses.
            now: The time in seconds.
        """
        if now < self._next_look:
            return None
        self._next_look = now + _SECONDS_BETWEEN_LOOKS
        in_time = time_excess(self._stage, self._seconds_in_stage(now), self._limits.stage_seconds)
        return in_time or usage_excess(usage(), memory_bytes=self._memory_bytes, tasks=self._limits.tasks)

    def _seconds_in_stage(self, now: float) -> float:
        return self._seconds.get(self._stage, 0.0) + now - self._began
