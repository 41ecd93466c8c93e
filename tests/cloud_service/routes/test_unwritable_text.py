"""Text that no encoding can express is refused at the door, and what an older service let in breaks nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cloud_service.app import Service, create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.database import open_database
from shared.api import JobStatus

ROWS = {"task": "rows", "text": "rows.jsonl"}
HALF = r'"\ud800"'


def body(fields: str) -> bytes:
    """A request spelled by hand: JSON can say what UTF-8 cannot."""
    return b'{"model": "tiny", ' + fields.encode() + b"}"


@pytest.mark.attack
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (f'"calibration": {{"task": "rows", "text": "r", "label_words": {{"a": {HALF}, "b": "c"}}}}', "label_words.a"),
        (
            f'"calibration": {{"task": "rows", "text": "r", "label_words": {{{HALF}: "a", "b": "c"}}}}',
            "label_words.",
        ),
        (f'"calibration": {{"task": "rows", "text": {HALF}}}', "calibration.text"),
        (r'"calibration": {"task": "rows", "text": "r", "template": "{text}{label}\udfff"}', "calibration.template"),
        (f'"calibration": {{"task": {HALF}}}', "calibration.task"),
        (f'"evaluation": {{"text": {HALF}}}', "evaluation.text"),
        (f'"name": {HALF}', "name"),
        (f'"tag": {HALF}', "tag"),
        (f'"revision": {HALF}', "revision"),
        (f'"scope": {HALF}', "scope"),
        (f"{HALF}: 1", "body"),
        (r'"model": "a\u0000b"', "model"),
        (r'"calibration": {"text": "a\u0000b"}', "calibration.text"),
    ],
)
def test_half_a_surrogate_pair_or_nul_in_any_field_is_a_422_and_makes_no_job(api: Any, fields: str, param: str) -> None:
    before = api.service.jobs.count_by_status()
    answer = api.client.post("/prepare-model", content=body(fields), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    problem = json.loads(answer.content.decode())
    assert param in problem["param"]
    assert "\0" not in answer.text
    assert api.service.jobs.count_by_status() == before
    assert api.client.get("/v1/jobs").status_code == 200


OLD_REQUESTS = {
    "half": {"model": "tiny", "calibration": {**ROWS, "label_words": {"a": "\ud800", "b": "c"}}},
    "nul": {"model": "ti\0ny"},
    "unknown field": {"model": "tiny", "colour": "red"},
    "no object": ["tiny"],
}


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Service]:
    """A service on a database in which an older one left such requests, and one sound job after them."""
    path = tmp_path / "data" / "jobs.sqlite3"
    open_database(path).dispose()
    with sqlite3.connect(path) as connection:
        for number, request in enumerate([*OLD_REQUESTS.values(), {"model": "tiny"}]):
            connection.execute(
                "INSERT INTO jobs (id, request, input_digest, status, progress, created, attempt, crashes, last_event,"
                " message) VALUES (?, ?, 'sha256:0', 'queued', '{}', 0, 0, 0, 1, 'queued')",
                (f"job-{number}", json.dumps(request)),
            )
            connection.execute(
                "INSERT INTO events (job_id, id, at, status, progress, message)"
                " VALUES (?, 1, 0, 'queued', '{\"unit\": \"\\ud800\"}', 'queued')",
                (f"job-{number}",),
            )
    connection.close()
    with open_service(Settings(data=path.parent, is_auth_enabled=False)) as service:
        yield service


@pytest.fixture
def client(old: Service) -> Iterator[TestClient]:
    client = TestClient(create_app(old), base_url="http://127.0.0.1")
    yield client
    client.close()


@pytest.mark.attack
def test_requests_that_an_older_service_stored_are_listed_with_what_is_wrong(client: TestClient) -> None:
    answer = client.get("/v1/jobs")
    assert answer.status_code == 200
    sound, *refused = answer.json()["jobs"]
    assert sound["error"] is None
    assert [job["error"]["type"] for job in refused] == ["unreadable-record"] * 4
    no_object, unknown, nul, half = refused
    assert half["input"]["calibration"]["label_words"] == {"a": "\ufffd", "b": "c"}
    assert half["error"]["message"].startswith(r'stored request.calibration.label_words.a = "\ud800"')
    assert nul["input"]["model"] == "ti\ufffdny"
    assert "request.colour" in unknown["error"]["message"]
    assert no_object["input"]["model"] == "unreadable"
    for job in refused:
        assert client.get(f"/v1/jobs/{job['id']}").json() == job
        assert client.get(f"/v1/jobs/{job['id']}/events").json()["events"][0]["progress"]["unit"] in ("", "\ufffd")


def test_such_a_job_can_be_cancelled_and_keeps_what_was_stored(old: Service, client: TestClient) -> None:
    assert client.post("/v1/jobs/job-0/cancel").json()["status"] == "cancelled"
    with sqlite3.connect(old.settings.database) as connection:
        (stored,) = connection.execute("SELECT request FROM jobs WHERE id = 'job-0'").fetchone()
    connection.close()
    assert json.loads(stored) == OLD_REQUESTS["half"]


@pytest.mark.attack
def test_such_a_job_is_never_run_and_the_queue_behind_it_moves_on(old: Service, client: TestClient) -> None:
    claimed = old.jobs.claim_next(owner="me", lease_seconds=30)
    assert claimed is not None
    assert claimed.id == "job-4"
    assert old.jobs.claim_next(owner="me", lease_seconds=30) is None
    for number in range(4):
        job = client.get(f"/v1/jobs/job-{number}").json()
        assert (job["status"], job["error"]["type"]) == ("failed", "unreadable-record")
        events = client.get(f"/v1/jobs/job-{number}/events").json()["events"]
        assert [event["id"] for event in events] == [1, 2, 3]
        assert events[-1]["message"].startswith("stored request")
    assert old.jobs.count_by_status()[JobStatus.FAILED] == 4
