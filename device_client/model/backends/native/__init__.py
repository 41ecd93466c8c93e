"""The backend that is compiled for this CPU; and what it will keep, in numbers that need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.bundle.config import QuantizedEntry


@dataclass(frozen=True, slots=True)
class NativePlan:
    """What the backend will keep; see ``PlannedBackend``.

    Attributes:
        value_bytes: Bytes of one value in the compute dtype.
    """

    value_bytes: int

    def workspace_bytes(self, shapes: Sequence[tuple[int, int]]) -> int:
        """Return the bytes of the largest weight."""
        return max(rows * columns for rows, columns in shapes) * self.value_bytes

    def position_bytes(self, entry: QuantizedEntry) -> int:
        """Return the bytes of indices of 4 bytes, and of what the values replace."""
        return entry.sensitive_count * (4 + self.value_bytes)

    def is_decoded(self, _: QuantizedEntry) -> bool:
        """Return True: products of many tokens decode."""
        return True
