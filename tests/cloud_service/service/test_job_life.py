"""A whole job through a real server process, a real job process and a real client."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle
from shared.bundle.statement import verify_release

STAGES = ["resolving", "downloading", "calibrating", "selecting", "quantizing", "evaluating", "publishing"]


def test_a_job_runs_through_all_stages_and_publishes_a_signed_bundle(service: Any) -> None:
    job = service.post(name="team/tiny", tag="v1")
    assert job["status"] == "queued"
    done = service.wait(job["id"])
    assert done["status"] == "succeeded", done
    assert done["attempt"] == 1
    assert done["result"]["name"] == "team/tiny"
    assert done["error"] is None
    assert service.trace(job["id"]) == STAGES

    answer = service.client.get("/v2/team/tiny/manifests/v1")
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    assert done["result"]["digest"] == digest == answer.headers["docker-content-digest"]
    assert answer.headers["content-type"] == "application/vnd.oci.image.manifest.v1+json"

    artifact = service.client.get(f"/v2/team/tiny/manifests/{digest.replace(':', '-')}.sig").json()
    blob = service.client.get(f"/v2/team/tiny/blobs/{artifact['layers'][0]['digest']}")
    statement = verify_release(blob.content).statement
    assert (statement.name, statement.tag, statement.digest) == ("team/tiny", "v1", digest)

    bundles = service.client.get("/v1/bundles").json()["bundles"]
    (listed,) = [bundle for bundle in bundles if bundle["name"] == "team/tiny"]
    assert (listed["tag"], listed["base_model"]) == ("v1", "tests/tiny")
    page = service.client.get(listed["report_url"])
    assert page.text == "<!doctype html><title>report</title>"
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_events_count_from_one_without_holes_and_tell_every_stage(service: Any) -> None:
    job = service.post()
    service.wait(job["id"])
    events = service.events(job["id"])
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    stages = [event["stage"] for event in events if event["stage"]]
    assert list(dict.fromkeys(stages)) == STAGES
    assert events[0]["status"] == "queued"
    assert events[-1]["status"] == "succeeded"
    assert {"done": 4, "total": 4, "unit": "steps"} in [event["progress"] for event in events]


def test_an_event_stream_ends_with_the_job_and_replays_after_the_last_event_id(service: Any) -> None:
    job = service.post()
    url = f"/v1/jobs/{job['id']}/events"
    streamed = read_stream(service.client, url)
    assert [event["id"] for event in streamed] == list(range(1, len(streamed) + 1))
    assert streamed[-1]["status"] == "succeeded"
    assert streamed == service.events(job["id"])
    assert read_stream(service.client, url, last_event_id=5) == streamed[5:]
    over = service.client.get(url, headers={"Accept": "text/event-stream", "Last-Event-ID": str(len(streamed))})
    assert over.status_code == 204


def read_stream(client: httpx.Client, url: str, last_event_id: int | None = None) -> list[dict[str, Any]]:
    headers = {"Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = str(last_event_id)
    with client.stream("GET", url, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        ids, events = [], []
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                ids.append(int(value))
            if name == "data":
                events.append(json.loads(value))
    assert ids == [event["id"] for event in events]
    return events


def test_the_same_input_is_answered_with_the_bundle_that_exists(service: Any) -> None:
    first = service.wait(service.post()["id"])
    again = service.wait(service.post(tag="other", name="renamed")["id"])
    assert again["result"]["digest"] == first["result"]["digest"]
    assert (again["result"]["name"], again["result"]["tag"]) == ("renamed", "other")
    assert service.trace(again["id"]) == []
    assert service.client.get("/v2/renamed/manifests/other").status_code == 200


def test_force_and_changed_weights_prepare_again(service: Any) -> None:
    service.wait(service.post()["id"])
    forced = service.wait(service.post(force=True)["id"])
    assert service.trace(forced["id"]) == STAGES
    service.tell("content", "other weights")
    changed = service.wait(service.post()["id"])
    assert service.trace(changed["id"]) == STAGES


def test_a_failed_job_tells_the_error_and_its_work_is_not_lost(service: Any) -> None:
    service.tell("fail", "text with no documents")
    failed = service.wait(service.post()["id"])
    assert failed["status"] == "failed"
    assert failed["error"]["type"] == "data-error"
    assert failed["error"]["param"] == "calibration.text"
    assert "mend the text" in failed["error"]["message"]
    assert failed["attempt"] == 1
    service.tell("fail", None)
    again = service.wait(service.post()["id"])
    assert again["status"] == "succeeded", again["error"]
    assert service.trace(again["id"]) == STAGES[2:]
    assert service.trace(failed["id"]) == STAGES[:2]


def test_an_error_that_nobody_foresaw_fails_the_job_at_its_first_attempt_with_its_reason(service: Any) -> None:
    service.tell("break", "argument 'text': lone surrogate")
    failed = service.wait(service.post()["id"])
    assert (failed["status"], failed["attempt"]) == ("failed", 1)
    assert failed["error"]["type"] == "preparation-fault"
    assert failed["error"]["message"].startswith("TypeError: argument 'text': lone surrogate")
    assert "Traceback" in (service.data / "jobs" / failed["id"] / "log.txt").read_text()


def test_a_running_job_is_cancelled_and_cancelling_again_changes_nothing(service: Any) -> None:
    service.tell("hold", "calibrating")
    job = service.post(name="never")
    service.wait_for_stage(job["id"], "calibrating", 1)
    answer = service.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 202
    assert answer.json()["status"] == "cancelling"
    assert service.wait(job["id"])["status"] == "cancelled"
    assert service.pid(job["id"]) is None
    again = service.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (202, "cancelled")
    assert service.client.get("/v2/never/manifests/latest").status_code == 404


def test_a_job_that_does_not_hear_sigterm_is_killed_after_the_grace_period(service: Any) -> None:
    service.tell("deaf", "selecting")
    job = service.post()
    service.wait_for_stage(job["id"], "selecting", 1)
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert service.wait(job["id"])["status"] == "cancelled"
    assert service.pid(job["id"]) is None


def test_no_secret_reaches_the_environment_of_a_job(make_service: Callable[..., Any]) -> None:
    service = make_service()
    service.environment = {
        "HF_TOKEN": "hf_secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "ZO_CLOUD_HUB_TOKEN": "hf_secret",
        "HTTPS_PROXY": "http://user:secret@proxy:3128",
        "HTTP_PROXY": "http://proxy:3128",
    }
    service.start()
    job = service.post()
    service.wait(job["id"])
    seen = json.loads(*service.logged(job["id"], "environment"))
    assert "secret" not in json.dumps(seen)
    assert seen["HTTP_PROXY"] == "http://proxy:3128"
    assert seen["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_what_a_library_prints_lands_in_the_log_of_the_job(service: Any) -> None:
    job = service.post()
    service.wait(job["id"])
    assert "a library prints to standard output" in (service.data / "jobs" / job["id"] / "log.txt").read_text()


def test_sigterm_drains_and_the_next_start_goes_on(make_service: Callable[..., Any]) -> None:
    service = make_service(max_attempts=1).start()
    service.tell("hold", "quantizing")
    job = service.post()
    service.wait_for_stage(job["id"], "quantizing", 1)
    with service.client.stream(
        "GET", f"/v1/jobs/{job['id']}/events", headers={"Accept": "text/event-stream"}
    ) as stream:
        next(stream.iter_lines())
        assert service.kill(signal.SIGTERM) == 0
    assert service.pid(job["id"]) is None
    service.tell("hold", None)
    service.start()
    done = service.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", 2)
    assert service.trace(job["id"]) == STAGES
    assert "Warning" not in service.stderr.read_text()


def test_a_second_service_on_the_same_data_is_refused(service: Any) -> None:
    import subprocess
    import sys

    script = Path(__file__).with_name("serve_fake.py")
    second = subprocess.run(
        [sys.executable, str(script), json.dumps(service.settings), service.program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 11
    assert "another zo-cloud serve uses" in second.stderr


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer zo_0123456789ab_wrong"}, {"Authorization": "x"}])
def test_without_a_valid_key_nothing_is_answered(service: Any, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=service.client.base_url, headers=headers) as stranger:
        for method, path in [("POST", "/prepare-model"), ("GET", "/v1/jobs"), ("GET", "/v2/"), ("GET", "/metrics")]:
            answer = stranger.request(method, path)
            assert answer.status_code == 401
            assert answer.json()["type"] == "unauthorized"
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith("Bearer")
            assert ("Basic" in challenge) is not path.startswith("/v2/")  # OCI clients are led to the token endpoint
        assert stranger.get("/healthz").status_code == 200


def test_the_api_process_holds_no_torch(service: Any) -> None:
    service.wait(service.post()["id"])
    mapped = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "libtorch" not in mapped
    assert "sqlite" in mapped


def test_a_published_bundle_passes_the_reader(service: Any) -> None:
    done = service.wait(service.post()["id"])
    bundle = read_bundle(ImageLayout(service.data / "store"), done["result"]["digest"])
    assert bundle.digest == done["result"]["digest"]
