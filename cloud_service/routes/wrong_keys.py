"""How many wrong keys one client may present: so many in a minute, then it has to wait. Right keys are never delayed.

Nobody guesses 256 random bits; this keeps a client with a lost key from filling the log and from working the database.
Costs a few times per client, for the clients seen last only.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from shared.errors import Unauthorized

_WINDOW_SECONDS = 60.0
_MAX_PEERS = 4096


class TooManyWrongKeys(Unauthorized):
    """A client presented wrong keys too often; a right one still passes."""

    status = 429

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "too many keys that are not valid here",
            needed="a key of this service that was not revoked",
            next_step=f"wait {retry_after_seconds} s before another try; ask the operator for a key",
        )
        self.retry_after_seconds = retry_after_seconds


class WrongKeys:
    """Counts wrong keys by client, in one thread.

    Args:
        per_minute: How many a client may present in any minute.
        clock: Seconds that never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def count(self, peer: str) -> None:
        """Count one wrong key.

        Raises:
            TooManyWrongKeys: The client presented ``per_minute`` already in the last minute.
        """
        times = self._times.setdefault(peer, deque(maxlen=self._per_minute))
        self._times.move_to_end(peer)
        if len(self._times) > _MAX_PEERS:
            self._times.popitem(last=False)
        now = self._clock()
        if len(times) == self._per_minute and now - times[0] < _WINDOW_SECONDS:
            raise TooManyWrongKeys(math.ceil(times[0] + _WINDOW_SECONDS - now))
        times.append(now)
