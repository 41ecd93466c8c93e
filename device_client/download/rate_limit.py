"""Keeps several connections together under one rate.

t_free ← max(now, t_free) + bytes / rate;  wait until t_free
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class RateLimit:
    """A pace that all connections share.

    Args:
        bytes_per_second: The rate; None never waits.
        clock: Seconds that only grow.
        sleep: Waits that many seconds.
    """

    def __init__(
        self, bytes_per_second: int | None, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._rate, self._clock, self._sleep = bytes_per_second, clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def take(self, byte_count: int) -> None:
        """Wait as long as ``byte_count`` more bytes need at the rate."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            self._free_at = max(now, self._free_at) + byte_count / self._rate
            delay = self._free_at - now
        self._sleep(delay)
