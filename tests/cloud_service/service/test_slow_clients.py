"""Clients that hold connections and send nothing, against a service process."""

from __future__ import annotations

import json
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
