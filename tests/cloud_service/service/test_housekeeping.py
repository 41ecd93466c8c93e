"""The service frees its disk by itself, and one failed run does not end that."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from cloud_service.housekeeping import Freed, Housekeeper
from cloud_service.jobs.leftovers import Cleared
from cloud_service.storage.garbage import Swept


def test_a_service_deletes_at_its_start_what_nobody_needs_and_says_so_in_its_log(make_service: Any) -> None:
    service = make_service(blob_grace_hours=0).start()
    job = service.wait(service.post(tag="kept")["id"])
    service.kill()
    unneeded = service.data / "store" / "blobs" / "sha256" / ("0" * 64)
    unneeded.write_bytes(b"nobody lists this")
    (service.data / "jobs" / job["id"] / "workspace").mkdir()
    service.start()
    freed = json.loads(wait_for_line(service, "freed what nobody needs"))["freed"]
    assert (freed["blobs"], freed["blob_bytes"], freed["workspaces"]) == (1, len(b"nobody lists this"), 1)
    assert not unneeded.exists()
    assert not (service.data / "jobs" / job["id"] / "workspace").exists()
    bundle = service.client.get("/v2/derived/manifests/kept")
    assert bundle.headers["docker-content-digest"] == job["result"]["digest"]
    for layer in bundle.json()["layers"]:
        assert service.client.head(f"/v2/derived/blobs/{layer['digest']}").status_code == 200


def wait_for_line(service: Any, words: str) -> str:
    """The first line of the service's log with these words."""
    end = threading.Event()
    for _ in range(3000):
        for line in Path(service.stdout).read_text().splitlines():
            if words in line:
                return line
        end.wait(0.02)
    raise AssertionError(f"no line with {words!r}")


def test_a_run_that_fails_is_followed_by_the_next_and_stopping_waits_for_none() -> None:
    runs, is_stopping, has_run_twice = [], threading.Event(), threading.Event()

    def clean() -> Freed:
        runs.append(1)
        if len(runs) == 1:
            raise OSError("the disk is gone")
        has_run_twice.set()
        return Freed(Swept(), Cleared())

    housekeeper = Housekeeper(clean, is_stopping, seconds_between=0.001)
    housekeeper.start()
    assert has_run_twice.wait(30)
    is_stopping.set()
    housekeeper.stop()
