"""``zo-cloud serve`` and ``zo-cloud prepare`` as a user runs them, with the real pipeline on a tiny random model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from tiny_checkpoint import build_checkpoint, write_text
from tiny_gguf import write_gguf

from cloud_service.cli import main
from cloud_service.storage.releases import published_statement
from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle
from shared.bundle.signature import signature_tag

DEADLINE_SECONDS = 120
ZO_CLOUD = (sys.executable, "-m", "cloud_service.cli")
SPEC = {
    "model": "tiny",
    "sparsity": 0.01,
    "calibration": {"text": "text.jsonl", "sequences": 4, "tokens_per_sequence": 32},
    "evaluation": {"documents": 4},
}


class Sources(NamedTuple):
    """A folder with ``models/tiny`` and ``texts/text.jsonl``."""

    root: Path

    def start(self, data: Path) -> tuple[subprocess.Popen[str], httpx.Client]:
        """Start a service on ``data`` and return it with a client that has a key of its own."""
        data.mkdir(exist_ok=True)
        made = subprocess.run(
            [*ZO_CLOUD, "keys", "create", "--scope", "admin", "--data", str(data), "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        options = ["--data", str(data), "--port", "0"]
        options += ["--model-root", str(self.root / "models"), "--text-root", str(self.root / "texts"), "--offline"]
        log = data.with_name(
            f"{data.name}-{time.monotonic_ns()}.log"
        )  # a pipe that nobody empties would stop the service
        with log.open("w") as output:
            service = subprocess.Popen(
                [*ZO_CLOUD, "serve", *options],
                stdout=output, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "ZO_CLOUD_POLL_SECONDS": "0.05",
                     "ZO_CLOUD_MIN_FREE_BYTES": "0", "ZO_CLOUD_PROGRESS_SECONDS": "0"},
            )  # fmt: skip
        url = _listening_url(service, log)
        headers = {"Authorization": f"Bearer {json.loads(made.stdout)['key']}"}
        return service, httpx.Client(base_url=url, headers=headers, timeout=30)


def _listening_url(service: subprocess.Popen[str], log: Path) -> str:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end and service.poll() is None:
        if (found := re.search(r'"event": "listening".*"url": "([^"]+)"', log.read_text())) is not None:
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"the service does not listen: {log.read_text()}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    root = tmp_path_factory.mktemp("sources")
    model = build_checkpoint(root / "models" / "tiny")
    # A job renders the template before any work, in a process of its own, confined as the job is.
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    (root / "texts").mkdir()
    write_text(root / "texts" / "text.jsonl")
    return Sources(root)


@pytest.fixture
def start(sources: Sources) -> Iterator[Callable[[Path], tuple[subprocess.Popen[str], httpx.Client]]]:
    """Starts services, and kills those that still run at the end."""
    started: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def start_one(data: Path) -> tuple[subprocess.Popen[str], httpx.Client]:
        started.append(sources.start(data))
        return started[-1]

    yield start_one
    for service, client in started:
        client.close()
        service.kill()
        service.wait(DEADLINE_SECONDS)


def wait_for_job(client: httpx.Client, job_id: str, is_reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if is_reached(job):
            return job
        assert job["status"] not in ("failed", "cancelled"), json.dumps(job)
        time.sleep(0.02)
    pytest.fail("nothing happened within two minutes")


def test_a_model_is_prepared_by_one_post_although_the_service_is_killed_and_the_bytes_are_the_command_lines(
    start: Callable[[Path], tuple[subprocess.Popen[str], httpx.Client]],
    sources: Sources,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service, client = start(tmp_path / "data")
    posted = client.post("/prepare-model", json=SPEC)
    assert posted.status_code == 202, posted.text
    job_id = posted.json()["id"]
    wait_for_job(client, job_id, lambda job: job["stage"] in ("calibrating", "selecting", "quantizing", "evaluating"))
    service.send_signal(signal.SIGKILL)
    service.wait(DEADLINE_SECONDS)

    service, client = start(tmp_path / "data")
    job = wait_for_job(client, job_id, lambda job: bool(job["status"] == "succeeded"))
    assert job["attempt"] == 2
    digest = job["result"]["digest"]
    bundle = read_bundle(ImageLayout(tmp_path / "data" / "store"), digest)
    assert bundle.config.source.id == "tiny"

    manifest = client.get("/v2/tiny/manifests/latest")
    assert manifest.headers["docker-content-digest"] == digest
    assert client.get(f"/v2/tiny/manifests/{signature_tag(digest)}").status_code == 200
    for layer in manifest.json()["layers"]:
        assert int(client.head(f"/v2/tiny/blobs/{layer['digest']}").headers["content-length"]) == layer["size"]
    (summary,) = client.get("/v1/bundles").json()["bundles"]
    assert summary["perplexity_16bit"] > 1
    assert "<html" in client.get(summary["report_url"]).text

    again = client.post("/prepare-model", json={**SPEC, "tag": "again"}).json()
    reused = wait_for_job(client, again["id"], lambda job: bool(job["status"] == "succeeded"))
    assert reused["result"]["digest"] == digest
    messages = [event["message"] for event in client.get(f"/v1/jobs/{again['id']}/events").json()["events"]]
    assert f"the same input was prepared before: {digest}" in messages

    assert prepare_here(sources, tmp_path / "out", capsys)["digest"] == digest


def test_a_gguf_file_under_a_model_root_is_prepared_in_a_confined_job_and_a_damaged_one_fails_with_its_reason(
    start: Callable[[Path], tuple[subprocess.Popen[str], httpx.Client]], sources: Sources, tmp_path: Path
) -> None:
    path = write_gguf(sources.root / "models" / "team" / "small.Q4_1.gguf")
    (path.parent / "cut.gguf").write_bytes(path.read_bytes()[:-5000])
    _, client = start(tmp_path / "data")
    jobs = [
        client.post("/prepare-model", json={**SPEC, **model}).json()["id"]
        for model in ({"model": "team/small.Q4_1.gguf"}, {"model": "team", "gguf_file": "cut.gguf"})
    ]
    job = wait_for_job(client, jobs[0], lambda job: bool(job["status"] == "succeeded"))
    assert job["result"]["name"] == "small-q4-1"
    source = read_bundle(ImageLayout(tmp_path / "data" / "store"), job["result"]["digest"]).config.source
    assert source.dequantized_from is not None
    assert source.dequantized_from.file == "small.Q4_1.gguf"
    end = time.monotonic() + DEADLINE_SECONDS
    while (failed := client.get(f"/v1/jobs/{jobs[1]}").json())["status"] != "failed":
        assert time.monotonic() < end, failed
        time.sleep(0.02)
    assert failed["error"]["type"] == "unsupported-model"
    assert failed["error"]["message"].startswith("cut.gguf is not complete: it has ")
    assert failed["attempt"] == 1  # it would fail again


def prepare_here(sources: Sources, output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    options = ["--sparsity", "0.01", "--calibration-text", str(sources.root / "texts" / "text.jsonl")]
    options += ["--sequences", "4", "--tokens", "32", "--evaluation-documents", "4"]
    options += [
        "--signing-key",
        str(output.parent / "key.pem"),
        "--output",
        str(output),
        "--expires-days",
        "7",
        "--json",
    ]
    assert main(["prepare", str(sources.root / "models" / "tiny"), *options]) == 0
    captured = capsys.readouterr()
    result: dict[str, Any] = json.loads(captured.out)
    layout = ImageLayout(output)
    assert set(layout.references()) == {"tiny:latest", f"tiny:{signature_tag(result['digest'])}"}
    statement = published_statement(layout, "tiny", "latest")
    assert statement is not None
    assert (statement.digest, statement.publisher) == (result["digest"], result["signed_by"])
    assert timedelta(days=6) < statement.expires_at - datetime.now(UTC) <= timedelta(days=7)
    assert json.loads((output / "report.json").read_bytes())
    assert "<html" in (output / "report.html").read_text()
    assert not (output / ".workspace").exists()
    assert "quantizing" in captured.err
    return result
