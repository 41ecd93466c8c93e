"""Requests, jobs and problems over HTTP; no worker runs here."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from cloud_service.app import create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.keys import Scope


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sparsity": 0}, "sparsity"),
        ({"sparsity": 2}, "sparsity"),
        ({"model": "../../etc"}, "model"),
        ({"model": "https://evil.example/model"}, "model"),
        ({"model": "/etc"}, "model"),
        ({"quantizer": {"bits": 5}}, "quantizer.bits"),
        ({"calibration": {"text": "/etc/passwd"}}, "calibration.text"),
        ({"evaluation": {"text": "http://localhost/"}}, "evaluation.text"),
        ({"revision": "a..b"}, "revision"),
        ({"name": "Upper"}, "name"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_bad_request_is_a_422_problem_that_names_the_field(api: Any, fields: dict[str, Any], param: str) -> None:
    answer = api.client.post("/prepare-model", json={"model": "tiny", **fields})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["param"] == param
    assert param in problem["detail"]
    assert problem["status"] == 422
    assert problem["instance"] == "/prepare-model"
    assert problem["type"] in ("invalid-request", "invalid-model-id")


def test_a_body_that_is_no_json_is_a_problem(api: Any) -> None:
    answer = api.client.post("/prepare-model", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_above_the_limit_is_refused(api: Any) -> None:
    answer = api.client.post("/prepare-model", content=b" " * 70_000, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "content-too-large")


def test_unknown_jobs_routes_and_methods_are_problems(api: Any) -> None:
    for method, path, status, kind in [
        ("GET", "/v1/jobs/unknown", 404, "not-found"),
        ("GET", "/v1/jobs/unknown/events", 404, "not-found"),
        ("POST", "/v1/jobs/unknown/cancel", 404, "not-found"),
        ("GET", "/v1/jobs?after=unknown", 404, "not-found"),
        ("GET", "/nowhere", 404, "not-found"),
        ("DELETE", "/v1/jobs", 405, "method-not-allowed"),
        ("GET", "/v1/jobs?status=odd", 422, "invalid-request"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid-request"),
    ]:
        answer = api.client.request(method, path)
        assert (answer.status_code, answer.json()["type"]) == (status, kind), path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"]
    assert api.client.delete("/v1/jobs").headers["allow"] == "GET"


def test_an_unexpected_error_is_a_problem_with_its_request_id_and_no_detail(data: Any) -> None:
    with open_service(Settings(data=data)) as service:
        app = create_app(service)

        @app.get("/broken")
        def broken() -> None:
            raise RuntimeError("a secret")

        client = TestClient(app, headers={"Authorization": f"Bearer {service.keys.create_first()}"})
        answer = client.get("/broken")
        client.close()
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "internal-error"
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert "secret" not in answer.text


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_body(api: Any) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = api.client.post("/prepare-model", json={"model": "tiny"}, headers=headers)
    again = api.client.post("/prepare-model", json={"model": "tiny", "tag": "latest"}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    other = api.client.post("/prepare-model", json={"model": "tiny", "sparsity": 0.01}, headers=headers)
    assert other.status_code == 422
    assert other.json()["param"] == "Idempotency-Key"


def test_a_queued_job_is_cancelled_at_once(api: Any) -> None:
    job = api.client.post("/prepare-model", json={"model": "tiny"}).json()
    cancelled = api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    again = api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert again.json() == cancelled.json()
    assert [event["id"] for event in api.client.get(f"/v1/jobs/{job['id']}/events").json()["events"]] == [1, 2]


def test_jobs_are_listed_in_pages(api: Any) -> None:
    made = [api.client.post("/prepare-model", json={"model": "tiny"}).json()["id"] for _ in range(3)]
    page = api.client.get("/v1/jobs?limit=2&status=queued").json()
    assert [job["id"] for job in page["jobs"]] == [made[2], made[1]]
    following = api.client.get(f"/v1/jobs?limit=2&status=queued&after={page['next']}").json()
    assert following["jobs"][0]["id"] == made[0]


def test_health_needs_no_key_and_readiness_names_what_is_missing(api: Any) -> None:
    assert api.client.get("/healthz", headers={"Authorization": ""}).json() == {"status": "ok"}
    answer = api.client.get("/readyz", headers={"Authorization": ""})
    assert answer.status_code == 503
    assert answer.json()["type"] == "not-ready"
    assert answer.json()["detail"].startswith("workers: ")


def test_health_checks_answer_head_without_a_body(api: Any, data: Any) -> None:
    alive = api.client.head("/healthz", headers={"Authorization": ""})
    assert (alive.status_code, alive.content) == (200, b"")
    not_ready = api.client.head("/readyz", headers={"Authorization": ""})
    assert (not_ready.status_code, not_ready.content) == (503, b"")
    with open_service(Settings(data=data, min_free_bytes=0)) as service, TestClient(create_app(service)) as client:
        assert client.head("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics"])
def test_what_describes_the_service_needs_a_key_of_any_scope(api: Any, path: str) -> None:
    refused = api.client.get(path, headers={"Authorization": ""})
    assert (refused.status_code, refused.json()["type"]) == (401, "unauthorized")
    assert api.client.get(path, headers=api.headers(Scope.BUNDLES)).status_code == 200


def test_a_service_with_workers_is_ready(data: Any) -> None:
    with (
        open_service(Settings(data=data, min_free_bytes=0, poll_seconds=0.01)) as service,
        TestClient(create_app(service)) as client,
    ):
        assert client.get("/readyz").json() == {"database": "ok", "store": "ok", "disk": "ok", "workers": "ok"}


def test_a_disk_with_too_little_space_is_not_ready(data: Any) -> None:
    with open_service(Settings(data=data, min_free_bytes=2**62)) as service, TestClient(create_app(service)) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "bytes free" in answer.json()["detail"]


def test_metrics_count_requests_by_route_and_jobs_by_state(api: Any) -> None:
    api.client.get("/v1/jobs/unknown")
    text = api.client.get("/metrics").text
    assert 'zo_cloud_request_seconds_count{method="GET",route="/v1/jobs/{job_id}",status="404"}' in text
    assert 'zo_cloud_jobs{status="queued"}' in text
    assert "zo_cloud_store_free_bytes" in text
    assert "unknown" not in text.replace('route="unknown"', "")


def test_without_keys_only_a_loopback_host_name_is_answered(data: Any) -> None:
    with open_service(Settings(data=data, is_auth_enabled=False)) as service:
        app = create_app(service)
        for host, status in [("127.0.0.1:8080", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403)]:
            client = TestClient(app, headers={"Host": host})
            assert client.get("/v1/jobs").status_code == status
            client.close()
