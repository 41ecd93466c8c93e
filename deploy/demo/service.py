"""The cloud half of the demo: ``zo-cloud serve`` as a process of its own, and one preparation over its HTTP API."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from shared.api import BundleList, BundleSummary, Job, PrepareRequest
from shared.errors import ZoError

PROGRAMS = Path(sys.executable).parent
START_TIMEOUT_SECONDS = 60
POLL_SECONDS = 0.3


@contextmanager
def zo_cloud(folder: Path, model_root: Path | None, text_root: Path | None) -> Iterator[httpx.Client]:
    """Run ``zo-cloud serve`` and yield a client that holds its admin key; its data and logs lie in ``folder``.

    Raises:
        ZoError: The service did not start; the message holds what it wrote.
    """
    command = [str(PROGRAMS / "zo-cloud"), "serve", "--port", "0", "--data", str(folder / "cloud")]
    for option, root in (("--model-root", model_root), ("--text-root", text_root)):
        if root is not None:
            command += [option, str(root)]
    log, errors = folder / "cloud.log", folder / "cloud.err"
    with log.open("wb") as log_file, errors.open("wb") as error_file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log_file, stderr=error_file)
    try:
        url = wait_for(process, log, r'"url": ?"(http[^"]+)"', errors)
        key = wait_for(process, errors, r"(zo_\S+)", errors)
        errors.write_text(errors.read_text().replace(key, "zo_…"))
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(process: subprocess.Popen[bytes], file: Path, pattern: str, errors: Path) -> str:
    """Return the first match of ``pattern`` that the process writes to ``file``."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if match := re.search(pattern, file.read_text()):
            return match[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise ZoError(
        f"zo-cloud serve did not start: {errors.read_text().strip()}",
        next_step=f"read {errors}, mend what it names and run the demo again",
    )


def prepare(client: httpx.Client, request: PrepareRequest, report: Callable[[Job], None]) -> BundleSummary:
    """POST the request, follow the job to its end, and return the published bundle.

    Args:
        client: Speaks to the service, with a key.
        request: What to prepare.
        report: Receives the job each time it was looked at.

    Raises:
        ZoError: The request was refused or the job failed; with the service's own reason.
    """
    answer = client.post("/prepare-model", json=request.model_dump(mode="json"))
    if answer.status_code != httpx.codes.ACCEPTED:
        raise ZoError(f"POST /prepare-model answered {answer.status_code}: {answer.text[:500]}")
    location = answer.headers["location"]
    while not (job := Job.model_validate_json(get(client, location).content)).status.is_terminal:
        report(job)
        time.sleep(POLL_SECONDS)
    if job.result is None:
        raise ZoError(f"the job {job.status}: {job.error.message if job.error else 'no reason given'}")
    listed = BundleList.model_validate_json(get(client, "/v1/bundles").content).bundles
    return next(bundle for bundle in listed if bundle.digest == job.result.digest)


def get(client: httpx.Client, path: str) -> httpx.Response:
    """GET a path that must exist."""
    answer = client.get(path)
    if answer.status_code != httpx.codes.OK:
        raise ZoError(f"GET {path} answered {answer.status_code}: {answer.text[:500]}")
    return answer
