"""How long a run has worked: in all processes together, without pauses.

    seconds.jsonl     {"seconds": 93.1, "steps_done": 40}        one line per validation, and one at the end

Seconds come from a clock that only grows, so the time of day may be set meanwhile; a suspended machine does not work.
What a killed process did after its last line is not counted. For people alone: no step depends on it, and a file that
is damaged or missing costs nothing but the curve against seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from device_client.tuning.run_directory import RunDirectory
from shared.errors import IntegrityError

SECONDS = "seconds.jsonl"


class WorkSeconds:
    """Counts from its making on.

    Args:
        run: Whose.
        clock: Seconds that only grow.

    Attributes:
        paused: Seconds of this process that were no work.
    """

    def __init__(self, run: RunDirectory, clock: Callable[[], float]) -> None:
        self._run, self._clock = run, clock
        self._begun_at = clock()
        self._earlier = max((seconds for _, seconds in read_work_seconds(run)), default=0.0)
        self.paused = 0.0

    def passed(self) -> float:
        """Return the seconds since this process began with the run, pauses included."""
        return self._clock() - self._begun_at

    def leave_out(self, seconds: float) -> None:
        """Do not count a pause of so many seconds."""
        self.paused += seconds

    def mark(self, steps_done: int) -> None:
        """Write down when so many steps were done.

        Raises:
            DiskError: The disk is full or not writable.
        """
        worked = self._earlier + self.passed() - self.paused
        self._run.append_line(SECONDS, {"steps_done": steps_done, "seconds": round(worked, 3)})


def read_work_seconds(run: RunDirectory) -> list[tuple[int, float]]:
    """Return (steps done, seconds worked) in the order of steps, the last line of each; nothing of a damaged file."""
    try:
        found = {int(line["steps_done"]): float(line["seconds"]) for line in run.lines(SECONDS)}
    except (IntegrityError, KeyError, TypeError, ValueError):
        return []
    return sorted(found.items())
