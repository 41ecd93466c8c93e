"""How OCI clients turn a key into a token, and what the challenges tell them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cloud_service.app import create_app
from cloud_service.storage.keys import Scope

OUTSIDE_OF_V2 = 'Bearer realm="zo-cloud", Basic realm="zo-cloud"'


@pytest.fixture
def stranger(api: Any) -> Iterator[TestClient]:
    """A client without a key, of an application that counts its wrong keys for this test alone."""
    client = TestClient(create_app(api.service))
    yield client
    client.close()


def as_password(bearer: dict[str, str], user: str = "anyone") -> dict[str, str]:
    """Present the key of a Bearer header as a password."""
    key = bearer["Authorization"].removeprefix("Bearer ")
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()}


@pytest.mark.parametrize("path", ["/v2/", "/v2/_catalog", "/v2/team/tiny/manifests/latest", "/v2/absent"])
def test_every_challenge_of_v2_is_bearer_alone_and_leads_to_the_token_endpoint(stranger: Any, path: str) -> None:
    refused = stranger.get(path)
    assert refused.status_code == 401
    assert refused.headers.get_list("www-authenticate") == [
        'Bearer realm="http://testserver/v2/token",service="testserver"'
    ]
    assert refused.json()["errors"][0]["code"] == "UNAUTHORIZED"


@pytest.mark.parametrize("path", ["/v1/bundles", "/metrics", "/v2"])
def test_outside_of_v2_the_challenges_ask_for_the_key_itself(stranger: Any, path: str) -> None:
    assert stranger.get(path).headers["www-authenticate"] == OUTSIDE_OF_V2


@pytest.mark.parametrize("host", ["bundles.example.org", "127.0.0.1:8080", "[::1]:5000"])
def test_the_realm_is_where_the_client_is_already(stranger: Any, host: str) -> None:
    challenge = stranger.get("/v2/", headers={"Host": host}).headers["www-authenticate"]
    assert challenge == f'Bearer realm="http://{host}/v2/token",service="{host}"'


@pytest.mark.attack
@pytest.mark.parametrize(
    "host", ['here",realm="http://there', "here/there?", "user@there", "here there", "here:99999999", ""]
)
def test_a_host_that_is_none_cannot_write_a_challenge(stranger: Any, host: str) -> None:
    challenge = stranger.get("/v2/", headers={"Host": host}).headers["www-authenticate"]
    assert challenge == 'Bearer realm="http://testserver/v2/token",service="testserver"'


@pytest.mark.parametrize("present", [as_password, dict], ids=["Basic", "Bearer"])
def test_a_valid_key_is_given_back_as_a_token_that_nobody_keeps(api: Any, present: Any) -> None:
    key = api.headers(Scope.BUNDLES)
    query = {"service": "testserver", "scope": "repository:team/tiny:pull", "account": "anyone"}
    answer = api.client.get("/v2/token", headers=present(key), params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()["token"]
    assert answer.json() == {"token": token, "access_token": token, "expires_in": 3600}
    assert {"Authorization": f"Bearer {token}"} == key
    assert api.client.get("/v2/team/tiny/tags/list", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_a_token_ends_with_its_key(api: Any, stranger: Any) -> None:
    key, text = api.service.keys.create("", [Scope.BUNDLES])
    password = as_password({"Authorization": f"Bearer {text}"})
    token = stranger.get("/v2/token", headers=password).json()["token"]
    api.service.keys.revoke(key.id)
    assert stranger.get("/v2/", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert stranger.get("/v2/token", headers=password).status_code == 401


@pytest.mark.attack
@pytest.mark.parametrize(
    "scope", ["repository:team/tiny:pull", "repository:team/tiny:pull,push,delete", "registry:catalog:*"]
)
def test_a_token_gives_no_right_that_its_key_lacks_whatever_was_asked_for(api: Any, scope: str) -> None:
    password = as_password(api.headers(Scope.JOBS))
    token = api.client.get("/v2/token", headers=password, params={"scope": scope}).json()["token"]
    refused = api.client.get("/v2/team/tiny/tags/list", headers={"Authorization": f"Bearer {token}"})
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (403, "DENIED")


@pytest.mark.parametrize("header", [None, "", "Basic !", "Basic YTpi", "Bearer zo_0123456789ab_wrong", "Digest x"])
def test_without_a_valid_key_there_is_no_token_and_the_challenge_asks_for_a_password(
    stranger: Any, header: str | None
) -> None:
    refused = stranger.get("/v2/token", headers={} if header is None else {"Authorization": header})
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="zo-cloud"')
    assert (refused.json()["type"], refused.json()["errors"][0]["code"]) == ("unauthorized", "UNAUTHORIZED")
    assert "token" not in refused.json()


def test_a_post_is_answered_so_that_clients_of_oauth2_try_get(api: Any, stranger: Any) -> None:
    form = {"grant_type": "password", "username": "anyone", "password": "zo_x_y", "service": "testserver"}
    assert stranger.post("/v2/token", data=form).status_code == 401
    refused = api.client.post("/v2/token", data=form)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET")
