"""Clients that hold connections and send nothing, against a service process."""

from __future__ import annotations

import json
import socket
from typing import Any

import half_open_connections
import pytest


@pytest.mark.attack
def test_health_answers_beside_1100_half_open_connections_and_the_log_stays_short(make_service: Any) -> None:
    service = make_service().start()
    address = (service.client.base_url.host, service.client.base_url.port)
    seen = half_open_connections.attack(address, 1100, 1500)
    assert (seen["health_failures"], seen["health_answers"] > 10) == (0, True)
    assert seen["opened"] >= 1500  # some were closed to make room, and came back
    others = [json.loads(line) for line in service.stdout.read_text().splitlines() if "/healthz" not in line]
    assert len(others) < 20


@pytest.mark.attack
def test_health_answers_beside_clients_that_ask_without_a_key_and_read_nothing(make_service: Any) -> None:
    service = make_service(max_connections=8, max_connections_per_address=0).start()
    address = (service.client.base_url.host, service.client.base_url.port)
    asked = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 500
    greedy = [socket.create_connection(address, timeout=10) for _ in range(8)]
    for client in greedy:
        client.sendall(asked)
    for client in greedy:
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    assert [service.client.get("/healthz").status_code for _ in range(3)] == [200] * 3
    for client in greedy:
        client.close()
