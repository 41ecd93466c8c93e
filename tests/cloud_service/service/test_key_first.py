"""What the service answers before it reads a body, on real sockets."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

LARGE = 64 * 1024 + 1


def ask(service: Any, *lines: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Send a head, and no body whatever it announces; return status, headers and the problem."""
    address = service.client.base_url.host, service.client.base_url.port
    with socket.create_connection(address, timeout=10) as client:
        client.sendall("\r\n".join((*lines, "Host: 127.0.0.1", "", "")).encode())
        stream = client.makefile("rb")
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, json.loads(stream.read(int(headers["content-length"])))


@pytest.mark.attack
@pytest.mark.parametrize("framing", ["Content-Length: 60000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("key", [[], ["Authorization: Bearer zo_nobody_guess"], ["Authorization: Basic !"]])
def test_without_a_valid_key_no_body_is_waited_for(make_service: Any, framing: str, key: list[str]) -> None:
    service = make_service(body_timeout_seconds=60).start()
    status, headers, problem = ask(service, "POST /prepare-model HTTP/1.1", framing, *key)
    assert (status, problem["type"]) == (401, "unauthorized")
    assert headers["content-type"] == "application/problem+json"
    assert "www-authenticate" in headers


@pytest.mark.attack
def test_a_body_that_is_announced_too_large_is_refused_before_it_is_sent(service: Any) -> None:
    key = f"Authorization: Bearer {service.first_key()}"
    status, _, problem = ask(service, "POST /prepare-model HTTP/1.1", f"Content-Length: {LARGE}", key)
    assert (status, problem["type"]) == (413, "content-too-large")


def test_a_chunked_body_that_becomes_too_large_is_refused(service: Any) -> None:
    answer = service.client.post("/prepare-model", content=(b"x" * 1000 for _ in range(100)))
    assert (answer.status_code, answer.json()["type"]) == (413, "content-too-large")


@pytest.mark.parametrize("path", ["/v1/jobs", "/v2/", "/metrics", "/openapi.json", "/no-such-path"])
def test_all_paths_but_the_health_checks_need_a_key(service: Any, path: str) -> None:
    with httpx.Client(base_url=service.client.base_url) as stranger:
        assert stranger.get(path).status_code == 401
        assert {stranger.get(path).status_code for path in ("/healthz", "/readyz")} == {200}


@pytest.mark.attack
def test_a_client_that_tries_keys_has_to_wait_while_right_keys_pass(make_service: Any) -> None:
    service = make_service(max_wrong_keys_per_minute=3).start()
    with httpx.Client(base_url=service.client.base_url) as stranger:
        tries = [stranger.get("/v1/jobs", headers={"Authorization": f"Bearer zo_{n}_x"}) for n in range(5)]
        assert [answer.status_code for answer in tries] == [401, 401, 401, 429, 429]
        assert tries[4].json()["type"] == "too-many-wrong-keys"
        assert 0 < int(tries[4].headers["retry-after"]) <= 60
        assert stranger.get("/v1/jobs").status_code == 401  # no key is not a wrong key
    assert service.client.get("/v1/jobs").status_code == 200


@pytest.mark.attack
@pytest.mark.parametrize(("trusted", "last"), [([], 429), (["127.0.0.1"], 401)])
def test_a_client_escapes_its_limit_by_a_header_only_where_its_proxy_is_trusted(
    make_service: Any, trusted: list[str], last: int
) -> None:
    service = make_service(max_wrong_keys_per_minute=2, forwarded_allow_ips=trusted).start()
    with httpx.Client(base_url=service.client.base_url, headers={"Authorization": "Bearer wrong"}) as stranger:
        tries = [stranger.get("/v1/jobs", headers={"X-Forwarded-For": f"192.0.2.{n}"}) for n in range(3)]
    assert [answer.status_code for answer in tries] == [401, 401, last]
