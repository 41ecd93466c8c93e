"""When to try again, and how long to wait: doubled delays, the server's Retry-After, a bound on attempts in vain.

    delay_n = min(longest, first · 2^n), or what the server asked for

Attempts are counted since the last progress, so a line that drops every few megabytes still gets to the end.
"""

from __future__ import annotations

import email.utils
import threading
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import NetworkError

LEAST_BYTES = 1024
"""A connection that brings fewer bytes in the time that one may stay silent is as good as silent."""


class TransientError(NetworkError):
    """A failure that may be gone at the next attempt.

    Attributes:
        retry_after_seconds: How long the server asked to wait, or None.
        is_stall: Whether the connection brought next to nothing for too long.
    """

    def __init__(
        self,
        found: str,
        *,
        needed: str = "a connection to the server",
        next_step: str = "run the same command again later; what was fetched is kept",
        retry_after_seconds: float | None = None,
        is_stall: bool = False,
    ) -> None:
        super().__init__(found, needed=needed, next_step=next_step)
        self.retry_after_seconds, self.is_stall = retry_after_seconds, is_stall


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient to be.

    Attributes:
        retries: Attempts in vain after the first one.
        first_delay_seconds: Wait after the first failure; doubled after each further one.
        longest_delay_seconds: No own delay is longer.
        longest_retry_after_seconds: A server that asks for more is not waited for.
    """

    retries: int = 5
    first_delay_seconds: float = 0.5
    longest_delay_seconds: float = 30.0
    longest_retry_after_seconds: float = 600.0


class Attempts:
    """Counts the failures of one piece of work.

    Args:
        policy: How patient to be.
        sleep: Waits that many seconds.
        notify: Told why and how long is waited.
    """

    def __init__(self, policy: RetryPolicy, sleep: Callable[[float], None], notify: Callable[[str], None]) -> None:
        self._policy, self._sleep, self._notify = policy, sleep, notify
        self._failures = 0

    def wait_after(self, error: TransientError, *, gained_bytes: int = 0) -> None:
        """Wait before the next attempt.

        Args:
            error: Why the last one failed.
            gained_bytes: What it brought all the same; of one that stalled less than 1 KiB counts as nothing.

        Raises:
            NetworkError: There were too many failures in vain, or the server asks to wait too long.
        """
        has_progressed = gained_bytes >= (LEAST_BYTES if error.is_stall else 1)
        self._failures = 1 if has_progressed else self._failures + 1
        asked = error.retry_after_seconds
        if self._failures > self._policy.retries:
            raise _gives_up(error, "tried once" if self._failures == 1 else f"tried {self._failures} times") from error
        if asked is not None and asked > self._policy.longest_retry_after_seconds:
            raise _gives_up(error, f"the server asks to wait {asked:.0f} s") from error
        own = min(self._policy.longest_delay_seconds, self._policy.first_delay_seconds * 2 ** (self._failures - 1))
        delay = own if asked is None else asked
        self._notify(f"{error.found}; trying again in {delay:.1f} s")
        self._sleep(delay)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After field asks for (a number or an HTTP date), or None where it has neither.

    Args:
        value: The field, or None.
        now: Seconds since 1970.
    """
    if value is None:
        return None
    if value.isascii() and value.strip().isdecimal():
        return float(value.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return None


def interruptible_sleep(stop: threading.Event) -> Callable[[float], None]:
    """Return a sleep that ends at once when ``stop`` is set."""

    def sleep(seconds: float) -> None:
        stop.wait(seconds)

    return sleep


def _gives_up(error: TransientError, why: str) -> NetworkError:
    return NetworkError(f"{error.found} ({why})", needed=error.needed, next_step=error.next_step)
