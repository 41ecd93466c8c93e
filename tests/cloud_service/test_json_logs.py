"""What reaches the log when much is said."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest

from cloud_service.json_logs import EVENT_LINES, FAULT_LINES, REQUEST_LINES, FloodGuard

PROGRAM = """
import asyncio, logging, socket, sys
from cloud_service.json_logs import log_as_json
log_as_json(sys.stdout)
loop = asyncio.new_event_loop()
for number in range(500):
    loop.call_exception_handler({"message": "socket.accept() out of system resource", "socket": number})
logging.getLogger("other").info("said once")
loop.close()
"""


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def record(message: str, level: int = logging.WARNING, logger: str = "one", *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(logger, level, __file__, 1, message, arguments, None)


def test_after_so_many_lines_of_a_kind_the_rest_is_counted_and_told() -> None:
    told: list[logging.LogRecord] = []
    clock = Clock()
    guard = FloodGuard(told.append, clock)
    passed = [guard.passes(record("bad %d", logging.WARNING, "one", number)) for number in range(25)]
    assert passed == [True] * 20 + [False] * 5
    assert guard.passes(record("bad %d", logging.WARNING, "two", 1))
    assert guard.passes(record("bad %d", logging.ERROR, "one", 1))
    assert guard.passes(record("worse"))
    clock.now += 9.9
    assert not guard.passes(record("bad %d", logging.WARNING, "one", 25))
    assert told == []
    clock.now += 0.1
    assert guard.passes(record("something else"))
    assert [line.getMessage() for line in told] == ["left out 6 lines like: bad %d"]
    assert guard.passes(record("bad %d", logging.WARNING, "one", 26))


@pytest.mark.parametrize(
    ("logger", "level", "bound"),
    [
        ("cloud_service.jobs.supervisor", logging.ERROR, FAULT_LINES),
        ("cloud_service.jobs.supervisor", logging.INFO, EVENT_LINES),
        ("cloud_service.routes.requests", logging.INFO, REQUEST_LINES),
        ("cloud_service.routes.requests", logging.ERROR, FAULT_LINES),
    ],
)
def test_what_tells_of_normal_work_may_be_said_more_often(logger: str, level: int, bound: int) -> None:
    guard = FloodGuard(lambda _: None, Clock())
    assert sum(guard.passes(record("x", level, logger)) for _ in range(bound + 10)) == bound


def test_lines_of_many_kinds_take_bounded_memory_and_are_told_all_the_same() -> None:
    told: list[logging.LogRecord] = []
    guard = FloodGuard(told.append, Clock())
    for _ in range(21):
        guard.passes(record("first"))
    for number in range(1000):
        guard.passes(record(f"text {number}"))
    assert [line.getMessage() for line in told] == ["left out 1 lines like: first"]


@pytest.mark.attack
def test_500_failures_to_accept_a_connection_are_a_few_lines() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in io.StringIO(done.stdout)]
    refused = [line for line in lines if line["message"].startswith("socket.accept() out of system resource")]
    assert len(refused) == 20
    assert lines[-1]["message"] == "left out 480 lines like: socket.accept() out of system resource"
    assert [line["message"] for line in lines[20:-1]] == ["said once"]
