"""The token endpoint of a running server: where clients are led with their keys, and what wrong keys cost."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from self_signed import make_certificate


def realm(client: httpx.Client, **headers: str) -> str:
    """Return the address in the challenge of ``/v2/``."""
    challenge = client.get("/v2/", headers=headers).headers["www-authenticate"]
    match = re.fullmatch(r'Bearer realm="([^"]+)",service="[^"]+"', challenge)
    assert match is not None, challenge
    return match[1]


def test_with_a_certificate_the_key_is_asked_for_over_tls(make_service: Any, tmp_path: Path) -> None:
    service = make_service(**make_certificate(tmp_path)).start()
    trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with httpx.Client(base_url=service.client.base_url, verify=trust) as stranger:
        assert realm(stranger) == f"{str(service.client.base_url).rstrip('/')}/v2/token"
        assert realm(stranger).startswith("https://")


@pytest.mark.attack
@pytest.mark.parametrize(("trusted", "scheme"), [([], "http"), (["127.0.0.1"], "https")])
def test_only_a_trusted_proxy_says_which_scheme_and_no_header_but_host_says_which_host(
    make_service: Any, trusted: list[str], scheme: str
) -> None:
    service = make_service(forwarded_allow_ips=trusted).start()
    claims = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "elsewhere.example.org",
        "Forwarded": "host=elsewhere.example.org;proto=https",
    }
    with httpx.Client(base_url=service.client.base_url) as stranger:
        assert realm(stranger, **claims) == f"{scheme}://{service.client.base_url.netloc.decode()}/v2/token"


@pytest.mark.attack
def test_wrong_keys_at_the_token_endpoint_count_with_those_elsewhere(make_service: Any) -> None:
    service = make_service(max_wrong_keys_per_minute=3).start()
    with httpx.Client(base_url=service.client.base_url, auth=("any", "zo_0123456789ab_wrong")) as stranger:
        tries = [stranger.get(path) for path in ("/v2/token", "/v2/", "/v2/token", "/v2/token", "/v2/")]
        assert [answer.status_code for answer in tries] == [401, 401, 401, 429, 429]
        assert tries[3].json()["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert 0 < int(tries[3].headers["retry-after"]) <= 60
        assert stranger.get("/v2/token", auth=("any", service.first_key())).status_code == 200


def test_the_log_names_no_token(service: Any) -> None:
    token = service.client.get("/v2/token").json()["token"]
    assert token == service.first_key()
    assert '"path": "/v2/token"' in service.stdout.read_text()
    assert token not in service.stdout.read_text()
