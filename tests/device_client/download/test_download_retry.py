"""How long is waited, and when it is given up; and the common pace of several connections."""

from __future__ import annotations

import pytest

from device_client.download.rate_limit import RateLimit
from device_client.download.retry import Attempts, RetryPolicy, TransientError, parse_retry_after
from shared.errors import NetworkError


def test_delays_double_up_to_the_longest_and_then_it_is_given_up() -> None:
    waits: list[float] = []
    policy = RetryPolicy(retries=5, first_delay_seconds=1, longest_delay_seconds=6)
    attempts = Attempts(policy, waits.append, lambda _: None)
    for _ in range(5):
        attempts.wait_after(TransientError("server down"))
    with pytest.raises(NetworkError, match=r"server down.*tried 6 times") as caught:
        attempts.wait_after(TransientError("server down"))
    assert waits == [1, 2, 4, 6, 6]
    assert type(caught.value) is NetworkError
    assert caught.value.exit_code == 6


def test_progress_starts_the_count_anew() -> None:
    waits: list[float] = []
    attempts = Attempts(RetryPolicy(retries=1, first_delay_seconds=1), waits.append, lambda _: None)
    for _ in range(20):
        attempts.wait_after(TransientError("cut"), gained_bytes=1)
    assert waits == [1] * 20


def test_the_server_decides_the_wait_and_too_long_a_one_is_not_waited_for() -> None:
    waits: list[float] = []
    attempts = Attempts(RetryPolicy(), waits.append, lambda _: None)
    attempts.wait_after(TransientError("busy", retry_after_seconds=42))
    with pytest.raises(NetworkError, match="asks to wait 3600 s"):
        attempts.wait_after(TransientError("busy", retry_after_seconds=3600))
    assert waits == [42]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("", None), ("soon", None), ("-5", None), ("²", None), ("٣", None), ("0", 0), ("120", 120),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20), ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=100.0) == seconds


def test_connections_together_keep_to_the_rate() -> None:
    now, waits = [0.0], []
    limit = RateLimit(100, lambda: now[0], waits.append)
    limit.take(50)
    limit.take(50)
    now[0] = 10.0
    limit.take(200)
    assert waits == [0.5, 1.0, 2.0]


def test_without_a_rate_nothing_waits() -> None:
    waits: list[float] = []
    RateLimit(None, lambda: 0.0, waits.append).take(10**9)
    assert waits == []
