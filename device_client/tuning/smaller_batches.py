"""Out of memory means fewer sequences side by side, never a lost run.

A measurement that ran out of memory is thrown away and made anew as a whole, so that everything it compares (both
signs of a step, all rows of an evaluation) saw the same micro-batch. Knows nothing about what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from device_client.model.out_of_memory import is_out_of_memory
from shared.errors import ResourceError

ResultT = TypeVar("ResultT")


class Shrinkable(Protocol):
    """What runs several sequences side by side."""

    def shrink(self) -> bool:
        """Run fewer of them from now on; False where it is one already."""


class MicroBatch:
    """How many sequences run side by side."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def shrink(self) -> bool:
        """Halve the number, rounded up; False where it is one already."""
        if self.rows == 1:
            return False
        self.rows = (self.rows + 1) // 2
        return True


def with_smaller_batches(
    measure: Callable[[], ResultT], batches: Shrinkable, shrunk: Callable[[], None] = lambda: None
) -> ResultT:
    """Return what ``measure`` returns once its micro-batch fits.

    Args:
        measure: Is called again as a whole after each time it ran out of memory.
        batches: What ``measure`` runs on.
        shrunk: Is told each time that fewer run side by side, before the measurement is repeated.

    Raises:
        ResourceError: A single sequence does not fit the memory.
    """
    while True:
        try:
            return measure()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not batches.shrink():
                raise ResourceError(
                    "out of memory with one sequence at a time",
                    needed="more memory, or shorter rows",
                    next_step="--max-tokens 256, or close other programs",
                ) from error
        # Outside the handler, where the error no longer keeps the failed pass's tensors alive.
        shrunk()
