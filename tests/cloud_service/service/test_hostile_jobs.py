"""Jobs that use too much, say too much or refuse to stop: each is ended, and the service still answers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MEBIBYTE = 1 << 20
LIMITS = {
    "max_host_bytes": 512 * MEBIBYTE,
    "max_job_file_bytes": 8 * MEBIBYTE,
    "max_job_tasks": 64,
    "stage_seconds": {"calibrating": 1.0},
    "is_offline": True,
}
pytestmark = [pytest.mark.attack]


@pytest.fixture
def service(make_service: Callable[..., Any]) -> Iterator[Any]:
    """A service whose jobs attack; the model names the attack."""
    made = make_service(program="hostile_job.py", job_uid=61000 + os.getpid() % 1000, **LIMITS).start()
    yield made
    assert made.client.get("/healthz").status_code == 200
    assert made.client.get("/v1/jobs").status_code == 200
    assert made.client.get("/v1/bundles").json()["bundles"] == []


def attack(service: Any, name: str) -> dict[str, Any]:
    (service.models / name).mkdir()
    service.model = name
    job: dict[str, Any] = service.post()
    return job


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("memory", "resource-error", "of main memory"),
        ("allocation", "preparation-fault", "SIGABRT"),
        ("forks", "resource-error", "processes and threads"),
        ("long-file", "preparation-fault", "SIGXFSZ"),
        ("time", "resource-error", "the stage calibrating has taken more than 1 seconds"),
        ("many-messages", "preparation-fault", "more messages than can be written down"),
        ("long-message", "preparation-fault", "a message of more than 1048576 bytes"),
        ("links", "integrity-error", "cannot be opened"),
    ],
)
def test_a_job_that_goes_too_far_fails_at_its_first_attempt_and_says_why(
    service: Any, name: str, kind: str, reason: str
) -> None:
    job = service.wait(attack(service, name)["id"])
    assert (job["status"], job["attempt"], job["error"]["type"]) == ("failed", 1, kind), job["error"]
    assert reason in job["error"]["message"]
    assert service.pid(job["id"]) is None


def test_a_job_that_ignores_sigterm_is_killed_when_it_is_cancelled(make_service: Callable[..., Any]) -> None:
    service = make_service(program="hostile_job.py", is_offline=True).start()
    job = attack(service, "deaf")
    service.wait_for_stage(job["id"], "calibrating", 1)
    service.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert service.wait(job["id"])["status"] == "cancelled"
    assert service.pid(job["id"]) is None


@pytest.mark.parametrize("isolation", ["user", "namespace", "landlock", "none"])
def test_what_a_job_leaves_running_ends_with_it(make_service: Callable[..., Any], isolation: str) -> None:
    service = make_service(program="hostile_job.py", job_isolation=isolation, is_offline=True).start()
    job = attack(service, "grandchild")
    assert service.wait(job["id"])["error"]["message"] == "the end"
    assert running(f"left-by-{job['id']}") == []


def test_a_hostile_job_dies_with_a_service_that_is_killed(make_service: Callable[..., Any]) -> None:
    service = make_service(program="hostile_job.py", is_offline=True).start()
    job = attack(service, "deaf")
    service.wait_for_stage(job["id"], "calibrating", 1)
    service.kill(signal.SIGKILL)
    end = time.monotonic() + 30
    while service.pid(job["id"]) is not None:
        assert time.monotonic() < end, "an orphan continues"
        time.sleep(0.02)


def running(word: str) -> list[int]:
    """The processes that have ``word`` among their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
        except OSError:
            continue
        found += [int(process.name)] if word.encode() in words else []
    return found
