"""An event stream lasts no longer than the right to read it."""

from __future__ import annotations

from typing import Any

import pytest

from cloud_service.storage.database import open_database
from cloud_service.storage.keys import KeyStore, Scope


@pytest.mark.attack
def test_the_stream_of_a_revoked_key_ends_while_the_job_runs_and_cannot_be_opened_again(make_service: Any) -> None:
    service = make_service().start()
    service.tell("deaf", "calibrating")
    job = service.post()
    service.wait_for_stage(job["id"], "calibrating", 1)
    engine = open_database(service.data / "jobs.sqlite3")
    keys = KeyStore(engine)
    key, token = keys.create("reader", [Scope.JOBS])
    url = f"/v1/jobs/{job['id']}/events"
    headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
    with service.client.stream("GET", url, headers=headers, timeout=10) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("id: ")
        keys.revoke(key.id)
        for _ in lines:  # a stream that does not end is a timeout of the client
            pass
    engine.dispose()
    assert service.client.get(url, headers=headers).status_code == 401
    assert service.job(job["id"])["status"] == "running"
