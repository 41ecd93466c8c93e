"""How often a client may be wrong."""

from __future__ import annotations

import pytest

from cloud_service.routes.wrong_keys import TooManyWrongKeys, WrongKeys


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_more_than_allowed_has_to_wait_until_the_first_is_a_minute_old() -> None:
    clock = Clock()
    wrong = WrongKeys(3, clock)
    for clock.now in (1000.0, 1010.0, 1020.0):
        wrong.count("a")
    clock.now = 1021.5
    with pytest.raises(TooManyWrongKeys, match="wait 39 s") as caught:
        wrong.count("a")
    assert caught.value.retry_after_seconds == 39
    wrong.count("b")
    clock.now = 1060.0
    wrong.count("a")
    with pytest.raises(TooManyWrongKeys, match="wait 10 s"):
        wrong.count("a")


def test_only_the_clients_seen_last_are_remembered() -> None:
    wrong = WrongKeys(1, Clock())
    for number in range(10_000):
        wrong.count(str(number))
    wrong.count("0")  # forgotten, so it may be wrong again
    with pytest.raises(TooManyWrongKeys):
        wrong.count("9999")
