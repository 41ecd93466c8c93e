"""Who is closed for whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from cloud_service.serving.connection_table import ConnectionLimits, ConnectionTable, peer_of


class Client:
    """A connection that waits since a moment, or is being answered (None)."""

    def __init__(self, since: float | None, peer: str = "192.0.2.1", *, is_taking_an_answer: bool = False) -> None:
        self.peer = peer
        self.idle_rank = None if since is None else (is_taking_an_answer, since)
        self.is_closed = False
        self.is_late = False

    def is_overdue(self, now: float) -> bool:
        return self.is_late

    def abort(self) -> None:
        self.is_closed = True


def admit_all(table: ConnectionTable, *clients: Client) -> list[bool]:
    for client in clients:
        table.admit(client)
    return [client.is_closed for client in clients]


def with_loop(table_test: Callable[[], None]) -> None:
    async def run() -> None:
        table_test()

    asyncio.run(run())


def test_for_a_new_connection_the_one_that_waited_longest_without_a_request_is_closed() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections=3))
        assert admit_all(table, Client(2.0), Client(1.0), Client(3.0), Client(4.0)) == [False, True, False, False]
        assert len(table) == 3

    with_loop(check)


def test_a_request_that_is_being_answered_is_never_cut_for_another() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections=2))
        assert admit_all(table, Client(None), Client(None), Client(9.0)) == [False, False, True]
        assert len(table) == 2

    with_loop(check)


def test_who_still_takes_an_answer_is_closed_after_those_who_are_sent_nothing() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections=2))
        clients = Client(1.0, is_taking_an_answer=True), Client(2.0), Client(3.0)
        assert admit_all(table, *clients) == [False, True, False]

    with_loop(check)


def test_a_client_at_its_own_limit_makes_room_from_its_own_connections() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections_per_address=2))
        other = Client(0.0, "192.0.2.2")
        assert admit_all(table, other, Client(1.0), Client(2.0), Client(3.0)) == [False, True, False, False]

    with_loop(check)


def test_zero_is_no_limit_for_one_address() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections=500, max_connections_per_address=0))
        assert not any(admit_all(table, *(Client(float(number)) for number in range(400))))

    with_loop(check)


def test_a_closed_connection_gives_its_place_back_once() -> None:
    def check() -> None:
        table = ConnectionTable(ConnectionLimits(max_connections=2))
        first, second, third = Client(None), Client(None), Client(1.0)
        table.admit(first)
        table.admit(second)
        table.forget(first)
        table.forget(first)
        table.admit(third)
        assert (len(table), third.is_closed) == (2, False)

    with_loop(check)


def test_overdue_connections_are_closed_and_counted_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def run() -> None:
        table = ConnectionTable(ConnectionLimits(header_timeout_seconds=0.01))
        clients = [Client(None) for _ in range(5)]
        admit_all(table, *clients)
        for client in clients[:3]:
            client.is_late = True
        while len(table) > 2:
            await asyncio.sleep(0.002)
        assert [client.is_closed for client in clients] == [True, True, True, False, False]

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records] == [
        "connections closed: 3 overdue, 0 idle ones to make room, 0 refused for lack of room"
    ]


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_one_client_is_an_ipv4_address_or_an_ipv6_network(address: str, peer: str) -> None:
    assert peer_of(address) == peer
