"""A service as a real process on 127.0.0.1, with a client."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import pytest

Result = TypeVar("Result")
DEADLINE_SECONDS = 60
_numbers = itertools.count()
FAST = {"poll_seconds": 0.05, "progress_seconds": 0.0, "cancel_grace_seconds": 0.5, "min_free_bytes": 0, "port": 0}


class HasLayout(Protocol):
    @property
    def layout(self) -> Any: ...


class LiveService:
    """One data folder and the service process on it, which can be killed and started again."""

    def __init__(self, folder: Path, program: str = "fake_job.py", **settings: Any) -> None:
        self.program = program
        self.data = folder / "data"
        self.models = folder / "models"
        self.settings = {**FAST, "data": str(self.data), "model_roots": [str(self.models)], **settings}
        self.model = "tiny"
        self.process: subprocess.Popen[str] | None = None
        self.stderr = folder / "stderr.txt"
        self.stdout = folder / "stdout.txt"
        self.environment: dict[str, str] = {}
        self.client = httpx.Client()

    def start(self) -> LiveService:
        script = Path(__file__).with_name("serve_fake.py")
        with self.stderr.open("a") as errors, self.stdout.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(script), json.dumps(self.settings), self.program],
                stdout=output,
                stderr=errors,
                text=True,
                env={**os.environ, **self.environment},
            )
        url = wait_for(self._url)
        key = self.first_key()
        self.client.close()
        self.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        return self

    def _url(self) -> str | None:
        if self.process is not None and self.process.poll() is not None:
            pytest.fail(f"the service ended:\n{self.stdout.read_text()}\n{self.stderr.read_text()}")
        for line in self.stdout.read_text().splitlines():
            if line.endswith("}") and (fields := json.loads(line)).get("event") == "listening":
                return str(fields["url"])
        return None

    def first_key(self) -> str:
        (line,) = [line for line in self.stderr.read_text().splitlines() if "shown only once" in line]
        return line.split()[-1]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_SECONDS)

    def close(self) -> None:
        self.client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def post(self, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/prepare-model", json={"model": self.model, **fields}, headers=headers or {})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def wait(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until the job is in one of the states (default: over)."""
        wanted = statuses or ("succeeded", "failed", "cancelled")

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in wanted else None

        return wait_for(look)

    def wait_for_stage(self, job_id: str, stage: str, attempt: int) -> None:
        wait_for(lambda: (job := self.job(job_id))["stage"] == stage and job["attempt"] == attempt and self.pid(job_id))

    def pid(self, job_id: str) -> int | None:
        """The pid of the process that does the job's work: the last of those that its guard started."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                is_dead = "\nState:\tZ" in (process / "status").read_text()
                started = int((process / "stat").read_text().rpartition(")")[2].split()[19])  # in clock ticks
            except (OSError, ValueError):
                continue
            if process.name.isdigit() and not is_dead and str(self.data / "jobs" / job_id).encode() in words:
                found.append((started, int(process.name)))  # pids alone begin again at small ones some day
        return max(found, default=(0, None))[1]

    def events(self, job_id: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.client.get(f"/v1/jobs/{job_id}/events").json()["events"]
        return events

    def trace(self, job_id: str) -> list[str]:
        return self.logged(job_id, "trace")

    def logged(self, job_id: str, label: str) -> list[str]:
        """What the fake work printed after ``label: ``."""
        lines = (self.data / "jobs" / job_id / "log.txt").read_text().splitlines()
        return [line.removeprefix(f"{label}: ") for line in lines if line.startswith(f"{label}: ")]

    def tell(self, file: str, text: str | None) -> None:
        """Write (or remove) a file that the fake work obeys."""
        path = self.models / self.model / file
        if text is None:
            path.unlink()
        else:
            path.with_suffix(".new").write_text(text)
            path.with_suffix(".new").replace(path)


def wait_for(look: Callable[[], Result | None]) -> Result:
    """Call ``look`` until it returns something true; fail after a deadline that only a hang reaches."""
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.03)
    pytest.fail("nothing happened within a minute")


def add_model(service: LiveService, name: str, layout: Path) -> None:
    """Make a model folder of its own and let the service's helpers use it."""
    folder = service.models / name
    folder.mkdir(parents=True)
    (folder / "content").write_text(f"the weights of {name}")
    shutil.copytree(layout, folder / "bundle")
    service.model = name


@pytest.fixture
def make_service(tmp_path: Path, tiny_bundle: HasLayout) -> Iterator[Callable[..., LiveService]]:
    """Makes services that are not started yet; each is stopped at the end."""
    services: list[LiveService] = []

    def make(**settings: Any) -> LiveService:
        services.append(LiveService(tmp_path / f"service-{len(services)}", **settings))
        add_model(services[-1], "tiny", tiny_bundle.layout.root)
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture(scope="session")
def _running_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    service = LiveService(tmp_path_factory.mktemp("service"))
    service.models.mkdir()
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture
def service(_running_service: LiveService, tiny_bundle: HasLayout) -> LiveService:
    """A running service that many tests share, with a model that only this test uses; nobody may stop it."""
    add_model(_running_service, f"model-{next(_numbers)}", tiny_bundle.layout.root)
    return _running_service
