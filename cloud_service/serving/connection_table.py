"""Which connections the service keeps, and which it closes: so many in all, so many from one peer, none for ever.

Where there is no room for a new connection, the one that is longest without a welcome request is closed. A welcome
request that is being answered is never cut for another: then the new connection is closed instead. So clients that send
nothing, or that ask without a key, cannot keep out those that come after them, however many and busy they are.

A connection is overdue where its head, its body or its reader takes too long; one pass over the table each second (or
more often, for shorter limits) finds them. Nothing is logged about one connection; a line about all of them is written
every ten seconds at most. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

_LONGEST_PAUSE_SECONDS = 1.0
_REPORT_SECONDS = 10.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one service allows its clients.

    Attributes:
        header_timeout_seconds: From the connection, or from the last answer, to a request's complete head.
        body_timeout_seconds: From a request's head to the end of its body.
        write_stall_seconds: Time without a single byte taken by a client that is sent something.
        max_connections: Open at the same time.
        max_connections_per_address: The same, from one IPv4 address or one IPv6 network of 64 bits; 0 is no limit.
    """

    header_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 30.0
    write_stall_seconds: float = 60.0
    max_connections: int = 512
    max_connections_per_address: int = 256


class Connection(Protocol):
    """What the table needs of a connection."""

    @property
    def peer(self) -> str:
        """Whose connection it is, see ``peer_of``."""

    @property
    def idle_rank(self) -> tuple[bool, float] | None:
        """None where a welcome request is being answered; else the smallest of all is closed first."""

    def is_overdue(self, now: float) -> bool:
        """Whether it took longer than the limits allow."""

    def abort(self) -> None:
        """Close it at once."""


class ConnectionTable:
    """The open connections of one service, used from one event loop.

    Args:
        limits: What clients may do.

    Attributes:
        limits: The same.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._by_peer: dict[str, set[Connection]] = {}
        self._count = 0
        self._closed: Counter[str] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self._last_report = 0.0

    def __len__(self) -> int:
        return self._count

    def admit(self, connection: Connection) -> None:
        """Take in a new connection, or close it where there is no room and none can be made."""
        neighbours = self._by_peer.get(connection.peer, set())
        if 0 < self.limits.max_connections_per_address <= len(neighbours):
            has_room = self._evict_one(neighbours)
        elif self._count >= self.limits.max_connections:
            has_room = self._evict_one({one for some in self._by_peer.values() for one in some})
        else:
            has_room = True
        if not has_room:
            self._closed["refused"] += 1
            connection.abort()
            return
        self._by_peer.setdefault(connection.peer, set()).add(connection)
        self._count += 1
        if self._sweep is None:
            self._plan_sweep()

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed; repeating it changes nothing."""
        neighbours = self._by_peer.get(connection.peer, set())
        if connection not in neighbours:
            return
        neighbours.remove(connection)
        self._count -= 1
        if not neighbours:
            del self._by_peer[connection.peer]

    def _evict_one(self, candidates: set[Connection]) -> bool:
        ranked = [(rank, one) for one in candidates if (rank := one.idle_rank) is not None]
        if not ranked:
            return False
        self._close(min(ranked, key=lambda pair: pair[0])[1], "evicted")
        return True

    def _close(self, connection: Connection, reason: str) -> None:
        self._closed[reason] += 1
        self.forget(connection)
        connection.abort()

    def _plan_sweep(self) -> None:
        limits = self.limits
        shortest = min(limits.header_timeout_seconds, limits.body_timeout_seconds, limits.write_stall_seconds)
        pause = min(_LONGEST_PAUSE_SECONDS, shortest / 4)
        self._sweep = asyncio.get_running_loop().call_later(pause, self._close_overdue)

    def _close_overdue(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in [one for some in self._by_peer.values() for one in some if one.is_overdue(now)]:
            self._close(connection, "overdue")
        if self._closed and now - self._last_report >= _REPORT_SECONDS:
            _logger.warning(
                "connections closed: %d overdue, %d idle ones to make room, %d refused for lack of room",
                *(self._closed[reason] for reason in ("overdue", "evicted", "refused")),
            )
            self._closed.clear()
            self._last_report = now
        self._sweep = None
        if self._count or self._closed:
            self._plan_sweep()


def peer_of(address: str) -> str:
    """Return whom limits for each client count: an IPv4 address, or an IPv6 network of 64 bits, as one client has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
