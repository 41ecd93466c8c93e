"""The OpenAPI document is complete, and the service does what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import api_fuzzing
import pytest

OPEN = {"/healthz", "/readyz"}
CALLS_THAT_SUCCEED = {
    "POST /prepare-model": 202,
    "GET /v1/jobs": 200,
    "GET /v1/jobs/{job_id}": 200,
    "POST /v1/jobs/{job_id}/cancel": 202,
    "GET /v1/jobs/{job_id}/events": 200,
    "GET /v1/bundles": 200,
    "GET /v1/bundles/{name}/report": 200,
    "GET /v1/bundles/{name}/tags/{tag}/history": 200,
    "GET /v1/audit": 200,
    "GET /v2/": 200,
    "GET /v2/token": 200,
    "GET /v2/_catalog": 200,
    "GET /v2/{name}/tags/list": 200,
    "GET /v2/{name}/referrers/{digest}": 200,
    "GET /v2/{name}/manifests/{reference}": 200,
    "GET /v2/{name}/blobs/{digest}": 200,
    "GET /healthz": 200,
    "GET /metrics": 200,
}
CALLS_THAT_MAY_FIND_NOTHING = {
    "GET /readyz",
    "POST /v1/bundles/{name}/tags/{tag}",
    "DELETE /v1/bundles/{name}/tags/{tag}",
    "DELETE /v1/bundles/{name}/digests/{digest}",
}


@pytest.fixture
def document(api: Any) -> dict[str, Any]:
    answer: dict[str, Any] = api.client.get("/openapi.json").json()
    return answer


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_it_names_the_service_and_where_it_is(document: dict[str, Any]) -> None:
    assert (document["info"]["title"], document["servers"]) == ("zo-cloud", [{"url": "/"}])
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["info"]["version"])


def test_every_operation_but_the_health_checks_needs_a_key_and_only_reads_take_basic(document: dict[str, Any]) -> None:
    assert {name: scheme["scheme"] for name, scheme in document["components"]["securitySchemes"].items()} == {
        "bearer": "bearer",
        "basic": "basic",
    }
    for path, method, operation in operations(document):
        schemes = [name for choice in operation["security"] for name in choice]
        assert schemes == ([] if path in OPEN else ["bearer", "basic"] if method == "get" else ["bearer"]), path


def test_every_error_is_a_described_problem(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        errors = {int(status): answer for status, answer in operation["responses"].items() if status >= "400"}
        assert {500, 503} <= errors.keys(), path
        assert path in OPEN or {401, 403, 429, 507} <= errors.keys(), path
        assert "requestBody" not in operation or {400, 408, 413, 422} <= errors.keys(), path
        assert "parameters" not in operation or 422 in errors, path
        for answer in errors.values():
            assert answer["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }, path
    assert document["components"]["schemas"]["Problem"]["required"] == ["type", "title", "status"]
    assert "HTTPValidationError" not in str(document)


@pytest.mark.parametrize(
    ("parameter", "valid", "invalid"),
    [
        ("job_id", ["0123456789abcdef01234567"], ["0123", "G" * 24, "0" * 25]),
        ("name", ["tiny", "team/tiny", "a.b/c-d/e_f/g"], ["", "Team", "a//b", "../a", "/a"]),
        ("reference", ["latest", "v1.0", "sha256:" + "0" * 64], ["", "-x", "a/b", "sha256:" + "0" * 63]),
        ("digest", ["sha256:" + "0" * 64], ["latest", "sha512:" + "0" * 64, "sha256:" + "0" * 65]),
    ],
)
def test_parameters_in_paths_have_a_pattern(
    document: dict[str, Any], parameter: str, valid: list[str], invalid: list[str]
) -> None:
    patterns = {
        described["schema"]["pattern"]
        for _, _, operation in operations(document)
        for described in operation.get("parameters", [])
        if (described["name"], described["in"]) == (parameter, "path")
    }
    (pattern,) = patterns
    assert all(re.search(pattern, text) for text in valid)
    assert not any(re.search(pattern, text) for text in invalid)


def test_head_is_not_described_and_answers_where_get_does(api: Any, document: dict[str, Any]) -> None:
    assert {method for _, method, _ in operations(document)} == {"get", "post", "delete"}
    assert api.client.head(f"/v2/team/tiny/manifests/{api.digest}").status_code == 200


@pytest.mark.attack
@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        (f"after={2**63}", {}, "after"),
        ("after=-1", {}, "after"),
        ("after=" + "9" * 5000, {}, "after"),
        ("", {"Last-Event-ID": str(2**63)}, "last-event-id"),
        ("", {"Last-Event-ID": str(2**70)}, "last-event-id"),
        ("", {"Last-Event-ID": "-1"}, "last-event-id"),
        ("", {"Last-Event-ID": "1.5"}, "last-event-id"),
    ],
)
def test_an_event_id_that_the_database_cannot_hold_is_a_422(
    api: Any, query: str, headers: dict[str, str], param: str
) -> None:
    job = api.client.post("/prepare-model", json={"model": "tiny"}).json()["id"]
    refused = api.client.get(f"/v1/jobs/{job}/events?{query}", headers=headers)
    assert (refused.status_code, refused.json()["param"]) == (422, param)


def test_the_largest_event_id_is_accepted(api: Any) -> None:
    job = api.client.post("/prepare-model", json={"model": "tiny"}).json()["id"]
    assert api.client.get(f"/v1/jobs/{job}/events?after={2**63 - 1}").json() == {"events": []}
    answer = api.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": str(2**63 - 1)})
    assert answer.json() == {"events": []}


@pytest.mark.attack
def test_no_call_that_is_made_from_the_document_contradicts_it(tmp_path: Any) -> None:
    with api_fuzzing.fuzzing_target(tmp_path) as target:
        known = api_fuzzing.fuzz(target, seed=1, examples=5, is_about_known=True)
        unknown = api_fuzzing.fuzz(target, seed=2, examples=5, is_about_known=False)
    assert known.failures == []
    assert unknown.failures == []
    for operation, status in CALLS_THAT_SUCCEED.items():
        assert known.calls[operation][status] > 0, operation
    assert known.calls.keys() == unknown.calls.keys() == CALLS_THAT_SUCCEED.keys() | CALLS_THAT_MAY_FIND_NOTHING
    assert unknown.calls["GET /v2/{name}/manifests/{reference}"][404] > 0
