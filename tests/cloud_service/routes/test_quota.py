"""One key cannot fill the queue."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cloud_service.app import Service, create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.keys import Scope


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    settings = Settings(data=tmp_path / "data", model_roots=(tmp_path / "models",), max_queued_jobs_per_key=3)
    with open_service(settings) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    client = TestClient(create_app(service))
    yield client
    client.close()


def headers(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {service.keys.create('', [Scope.JOBS], ['*'])[1]}"}


def post(client: TestClient, headers: dict[str, str]) -> Any:
    return client.post("/prepare-model", json={"model": "tiny"}, headers=headers)


@pytest.mark.attack
def test_the_queue_takes_no_more_of_a_key_than_its_quota_and_says_so(service: Service, client: TestClient) -> None:
    greedy, modest = headers(service), headers(service)
    jobs = [post(client, greedy) for _ in range(3)]
    assert [answer.status_code for answer in jobs] == [202] * 3
    refused = post(client, greedy)
    assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
    problem = refused.json()
    assert problem["type"] == "quota-exceeded"
    assert problem["detail"].startswith("3 queued jobs of key ")
    assert "Needed: fewer than 3" in problem["detail"]
    assert "Next: wait until some have started, or cancel one" in problem["detail"]
    assert post(client, modest).status_code == 202
    assert len(service.jobs.newest()) == 4


def test_a_job_that_started_or_was_cancelled_makes_room(service: Service, client: TestClient) -> None:
    caller = headers(service)
    first, *_ = (post(client, caller).json()["id"] for _ in range(3))
    assert post(client, caller).status_code == 429
    service.jobs.claim_next(owner="me", lease_seconds=30)
    assert post(client, caller).status_code == 202
    assert post(client, caller).status_code == 429
    newest = client.get("/v1/jobs", headers=caller).json()["jobs"][0]["id"]
    assert newest != first
    client.post(f"/v1/jobs/{newest}/cancel", headers=caller)
    assert post(client, caller).status_code == 202


def test_repeating_a_request_by_its_idempotency_key_is_not_refused(service: Service, client: TestClient) -> None:
    caller = headers(service) | {"Idempotency-Key": "one"}
    first = post(client, caller)
    while post(client, {**caller, "Idempotency-Key": str(len(service.jobs.newest()))}).status_code == 202:
        pass
    again = post(client, caller)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


@pytest.mark.attack
def test_requests_at_the_same_moment_do_not_pass_the_quota_together(service: Service, client: TestClient) -> None:
    caller = headers(service)
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda _: post(client, caller).status_code, range(12)))
    assert sorted(statuses) == [202] * 3 + [429] * 9


@pytest.mark.attack
def test_a_job_is_cancelled_by_the_key_that_began_it_or_by_an_admin_alone(service: Service, client: TestClient) -> None:
    owner, other = headers(service), headers(service)
    admin = {"Authorization": f"Bearer {service.keys.create('', [Scope.ADMIN])[1]}"}
    first, second = (post(client, owner).json()["id"] for _ in range(2))
    refused = client.post(f"/v1/jobs/{first}/cancel", headers=other)
    assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
    assert service.jobs.get(first).status == "queued"
    assert client.post(f"/v1/jobs/{first}/cancel", headers=owner).json()["status"] == "cancelled"
    assert client.post(f"/v1/jobs/{second}/cancel", headers=admin).json()["status"] == "cancelled"
