"""SIGKILL at every stage, of the job's process and of the service: the job finishes, and no stage is done twice."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

STAGES = ["resolving", "downloading", "calibrating", "selecting", "quantizing", "evaluating", "publishing"]


def test_a_job_whose_process_is_killed_in_each_stage_finishes(make_service: Any) -> None:
    service = make_service(max_attempts=2).start()
    service.tell("hold", STAGES[0])
    job = service.post()
    for attempt, (stage, following) in enumerate(zip(STAGES, [*STAGES[1:], ""], strict=True), 1):
        service.wait_for_stage(job["id"], stage, attempt)
        os.kill(service.pid(job["id"]), signal.SIGKILL)
        service.tell("hold", following)
        assert service.client.get("/v1/bundles").json() == {"bundles": [], "next": None}
    done = service.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", len(STAGES) + 1), done["error"]
    assert service.trace(job["id"]) == STAGES
    events = service.events(job["id"])
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert sum("SIGKILL" in event["message"] for event in events) == len(STAGES)


def test_a_job_finishes_although_the_service_is_killed_in_each_stage(make_service: Any) -> None:
    service = make_service(max_attempts=1).start()
    service.tell("hold", STAGES[0])
    job = service.post()
    for attempt, (stage, following) in enumerate(zip(STAGES, [*STAGES[1:], ""], strict=True), 1):
        service.wait_for_stage(job["id"], stage, attempt)
        service.kill()
        service.tell("hold", following)
        service.start()
        assert service.client.get("/v1/bundles").json() == {"bundles": [], "next": None}
    done = service.wait(job["id"])
    assert (done["status"], done["attempt"]) == ("succeeded", len(STAGES) + 1), done["error"]
    assert service.trace(job["id"]) == STAGES
    events = service.events(job["id"])
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert sum("was interrupted" in event["message"] for event in events) == len(STAGES)


def test_the_process_of_a_job_ends_when_the_service_is_killed(make_service: Any) -> None:
    service = make_service().start()
    service.tell("deaf", "calibrating")
    job = service.post()
    service.wait_for_stage(job["id"], "calibrating", 1)
    service.kill()
    end = time.monotonic() + 30
    while service.pid(job["id"]) is not None:
        assert time.monotonic() < end, "an orphan goes on"
        time.sleep(0.02)


def test_a_job_that_crashes_too_often_fails_and_says_how_it_ended_and_where_its_log_is(make_service: Any) -> None:
    service = make_service(max_attempts=2).start()
    service.tell("hold", "selecting")
    job = service.post()
    for attempt in (1, 2):
        service.wait_for_stage(job["id"], "selecting", attempt)
        os.kill(service.pid(job["id"]), signal.SIGKILL)
    failed = service.wait(job["id"])
    assert (failed["status"], failed["error"]["type"]) == ("failed", "job-crashed")
    assert "ended by SIGKILL" in failed["error"]["message"]
    assert f"jobs/{job['id']}/log.txt" in failed["error"]["message"]
