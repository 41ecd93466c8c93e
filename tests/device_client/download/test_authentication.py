"""Challenges and tokens: what is presented, to whom, and for how long."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from pulling_device import SERVER
from simulated_server import Answer, InMemoryTransport, Request, SimulatedServer, instead

from device_client.download.authentication import Access, parse_challenges
from device_client.download.docker_login import Login
from device_client.download.registry import Registry
from device_client.download.retry import RetryPolicy
from shared.bundle.layout import ImageLayout
from shared.errors import DigestMismatch, NetworkError, Unauthorized

TOKENS = "http://tokens.test"
CHALLENGE = f'Bearer realm="{TOKENS}/token",service="models",scope="repository:tiny:pull"'
LOGIN = Login("user", "kept secret", "a test")


class TokenRegistry(SimulatedServer):
    """Wants the newest token that ``tokens`` gave; a token is good for ``uses`` requests."""

    def __init__(self, layout: ImageLayout, *, uses: int = 1000, challenge: str = CHALLENGE) -> None:
        super().__init__(layout)
        self.challenge, self.uses, self.left, self.given = challenge, uses, 0, 0
        self.tokens = SimulatedServer(layout)
        self.tokens.misbehave(lambda _: True, self._give, times=1000)

    def _give(self, _: Request, __: Answer) -> Answer:
        self.given, self.left = self.given + 1, self.uses
        return Answer(200, {}, json.dumps({"token": f"token-{self.given}"}).encode())

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") == f"Bearer token-{self.given}" and self.left:
            self.left -= 1
            return super().answer(request)
        answer = Answer(401, {"WWW-Authenticate": self.challenge}, b"")
        self.answers.append((request, answer))
        return answer


def registry(server: SimulatedServer, *, tokens: SimulatedServer | None = None, login: Login | None = None) -> Registry:
    transport = InMemoryTransport({SERVER: server, TOKENS: tokens or SimulatedServer(server.layout)})
    access = Access(transport, SERVER, find_login=lambda: login)
    return Registry(transport, SERVER, access=access, policy=RetryPolicy(retries=0), sleep=lambda _: None)


def read(registry: Registry) -> bytes:
    return registry.manifest("tiny", "latest", max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", {}),
        ("Negotiate", {}),
        ('Basic realm="a, b"', {"basic": {"realm": "a, b"}}),
        ('bearer Realm="https://t/x",Service="s"', {"bearer": {"realm": "https://t/x", "service": "s"}}),
        ('Bearer realm="zo-cloud", Basic realm="x"', {"bearer": {"realm": "zo-cloud"}, "basic": {"realm": "x"}}),
        ('Bearer scope="a:b:pull,push"', {"bearer": {"scope": "a:b:pull,push"}}),
        ("Bearer " + "x" * 100_000, {"bearer": {}}),
    ],
)
def test_challenges_are_read_by_scheme(value: str, found: dict[str, dict[str, str]]) -> None:
    assert parse_challenges(value) == found


def test_a_token_is_fetched_once_and_used_for_every_request(published: ImageLayout) -> None:
    server = TokenRegistry(published)
    asking = registry(server, tokens=server.tokens)
    assert read(asking) == read(asking)
    ((request, _),) = server.tokens.answers
    assert request.url == f"{TOKENS}/token?service=models&scope=repository%3Atiny%3Apull"
    assert "Authorization" not in request.headers


def test_a_token_that_expires_is_replaced_in_the_middle(published: ImageLayout) -> None:
    server = TokenRegistry(published, uses=2)
    asking = registry(server, tokens=server.tokens)
    for _ in range(5):
        read(asking)
    assert server.given == 3


def test_a_token_that_is_refused_at_once_ends_it(published: ImageLayout) -> None:
    server = TokenRegistry(published, uses=0)
    with pytest.raises(Unauthorized, match="--username NAME"):
        read(registry(server, tokens=server.tokens))
    assert server.given == 1


def test_the_login_goes_to_the_token_service_and_the_token_to_the_registry(published: ImageLayout) -> None:
    server = TokenRegistry(published)
    read(registry(server, tokens=server.tokens, login=LOGIN))
    basic = "Basic " + base64.b64encode(b"user:kept secret").decode()
    assert [request.headers["Authorization"] for request, _ in server.tokens.answers] == [basic]
    assert [request.headers.get("Authorization") for request, _ in server.answers] == [None, "Bearer token-1"]


def test_a_basic_challenge_is_answered_with_the_login_once(published: ImageLayout) -> None:
    server = TokenRegistry(published, challenge='Basic realm="models"')
    with pytest.raises(Unauthorized):
        read(registry(server, login=LOGIN))
    basic = "Basic " + base64.b64encode(b"user:kept secret").decode()
    assert [request.headers.get("Authorization") for request, _ in server.answers] == [None, basic]


def test_nothing_is_presented_where_nobody_is_known(published: ImageLayout) -> None:
    server = TokenRegistry(published, challenge='Basic realm="models"')
    with pytest.raises(Unauthorized):
        read(registry(server))
    assert len(server.answers) == 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (Answer(401), Unauthorized, "refuses the login of 'user' from a test"),
        (Answer(500), NetworkError, "the token service http://tokens.test/token answers 500"),
        (Answer(404), NetworkError, "answers 404 without a token"),
        (Answer(200, {}, b"<html>"), NetworkError, "without a token"),
        (Answer(200, {}, b'{"token": "with spaces"}'), NetworkError, "without a token"),
        (Answer(200, {}, b'{"token": "' + b"x" * 300_000 + b'"}'), NetworkError, "without a token"),
    ],
)
def test_a_token_service_that_gives_none_is_named(
    published: ImageLayout, answer: Answer, error: type[Exception], words: str
) -> None:
    server = TokenRegistry(published)
    server.tokens.faults.clear()
    server.tokens.misbehave(lambda _: True, instead(answer), times=10)
    with pytest.raises(error, match=words) as caught:
        read(registry(server, tokens=server.tokens, login=LOGIN))
    assert "kept secret" not in str(caught.value)


@pytest.mark.attack
@pytest.mark.parametrize("realm", ["http://tokens.test/token", "file:///etc/passwd", "ftp://tokens.test/x"])
def test_an_encrypted_server_cannot_send_the_login_over_an_open_line(published: ImageLayout, realm: str) -> None:
    secure = SERVER.replace("http:", "https:")
    server = TokenRegistry(published, challenge=f'Bearer realm="{realm}"')
    transport = InMemoryTransport({secure: server, TOKENS: server.tokens})
    access = Access(transport, secure, find_login=lambda: LOGIN)
    with pytest.raises(NetworkError, match="a token service with an https address"):
        read(Registry(transport, secure, access=access))
    assert server.tokens.answers == []


def test_a_redirect_to_another_host_carries_no_token_and_its_challenge_is_not_answered(published: ImageLayout) -> None:
    server, elsewhere = TokenRegistry(published), TokenRegistry(published)
    server.misbehave(lambda _: True, lambda request, _: Answer(307, {"Location": f"http://cdn.test{request.path}"}))
    transport = InMemoryTransport({SERVER: server, TOKENS: server.tokens, "http://cdn.test": elsewhere})
    access = Access(transport, SERVER, find_login=lambda: LOGIN)
    with pytest.raises(NetworkError, match="redirects to, answers 401"):
        read(Registry(transport, SERVER, access=access, policy=RetryPolicy(retries=0)))
    assert [request.headers.get("Authorization") for request, _ in elsewhere.answers] == [None]
    assert server.given == 1


def test_the_referrers_api_leads_to_the_signature_where_it_has_no_tag(device, server, published) -> None:
    tag = next(name for name in published.references() if name.endswith(".sig"))
    artifact = published.resolve(tag)
    published.update({tag: None})
    entry = {"digest": artifact.digest, "size": artifact.size, "mediaType": artifact.media_type}
    index = json.dumps({"manifests": [{**entry, "artifactType": "application/spdx+json"}, entry]}).encode()
    server.misbehave(lambda request: "/referrers/" in request.path, instead(Answer(200, {}, index)))
    assert device.pull().publisher is not None


@pytest.mark.attack
def test_an_artifact_that_is_not_the_one_that_was_listed_is_refused(device, server, published) -> None:
    tag = next(name for name in published.references() if name.endswith(".sig"))
    artifact = published.resolve(tag)
    published.update({tag: None})
    index = json.dumps({"manifests": [{"digest": artifact.digest, "size": artifact.size}]}).encode()
    server.misbehave(lambda request: "/referrers/" in request.path, instead(Answer(200, {}, index)))
    server.misbehave(
        lambda request: request.path.endswith(artifact.digest),
        lambda _, answer: replace(answer, body=answer.body + b" "),
        times=3,
    )
    with pytest.raises(DigestMismatch, match="3 times"):
        device.pull()
    assert device.is_empty()
