"""Calls the HTTP API with what its own description allows and forbids, and returns every answer that contradicts it.

Schemathesis makes the calls (boundary values of every parameter, then random ones) from the OpenAPI document, in this
process and without a network. The service has a published bundle, a job and the model of the description's example, and
no worker, so the jobs that are made stay queued. Every answer is compared with the description: its status, media type,
body and headers; no call may end in a server error, and none may succeed without a key where one is needed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished
from starlette.types import ASGIApp, Receive, Scope, Send
from tiny_bundle import make_tiny_bundle

from cloud_service.app import create_app, open_service
from cloud_service.settings import Settings
from cloud_service.storage.audit import Author
from cloud_service.storage.database import writing
from cloud_service.storage.keys import Scope as KeyScope
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import parse_manifest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "ignored_auth",
)
_EXAMPLE_MODEL = "my-llama"
_SPARE_TAG = "spare"
"""What calls may move and delete, so that the tag ``latest`` stays for the others."""


@dataclass(frozen=True)
class Fuzzed:
    """What came of a run: how many calls of each operation got which status, and each contradiction once."""

    calls: dict[str, Counter[int]]
    failures: list[str]


@dataclass(frozen=True)
class Target:
    """An application without workers, a key that may do everything, and values of parameters that exist in it."""

    app: ASGIApp
    key: str
    known: dict[str, str]


class _WithoutLifespan:
    """An application whose workers never start, although its client says that the application may."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for moment in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{moment}.complete"})


@contextmanager
def fuzzing_target(folder: Path) -> Iterator[Target]:
    """Yield an application on a new data folder, which is open until the end of the ``with``."""
    made = make_tiny_bundle(folder / "made")
    (folder / "models" / _EXAMPLE_MODEL).mkdir(parents=True)
    shutil.copytree(made.layout.root, folder / "data" / "store")
    (folder / "data" / "store" / "index.json").unlink()
    settings = Settings(
        data=folder / "data",
        model_roots=(folder / "models",),
        min_free_bytes=0,
        poll_seconds=0.02,
        max_wrong_keys_per_minute=10**9,  # calls with wrong keys shall all be told that they are wrong
    )
    with open_service(settings) as service:
        manifest = ImageLayout(made.layout.root).resolve(made.reference)
        bundle = service.bundles.validate(manifest)
        service.bundles.add_report(manifest.digest, b"<!doctype html>")
        with writing(service.engine) as connection:
            for tag in ("latest", _SPARE_TAG):
                service.bundles.publish(connection, "team/tiny", tag, bundle, Author())
        job = service.jobs.create(PrepareRequest(model=_EXAMPLE_MODEL))
        known = {
            "path.name": "team/tiny",
            "path.reference": manifest.digest,
            "path.tag": _SPARE_TAG,
            "path.digest": parse_manifest(made.layout.read_blob(manifest.digest, max_bytes=2**20)).config.digest,
            "path.job_id": job.id,
            "query.reference": "latest",
        }
        yield Target(_WithoutLifespan(create_app(service)), service.keys.create("fuzzing", [KeyScope.ADMIN])[1], known)


def fuzz(target: Target, *, seed: int, examples: int, is_about_known: bool) -> Fuzzed:
    """Call every operation and return what contradicted the description.

    Args:
        target: What is called.
        seed: Decides the calls.
        examples: Random calls of each operation, besides those at the boundaries.
        is_about_known: Whether paths name what exists, where random ones almost never do.
    """
    headers = {"Authorization": f"Bearer {target.key}"}
    config = _config(seed, examples, target.known if is_about_known else {})
    schema = schemathesis.openapi.from_asgi("/openapi.json", target.app, config=config, headers=headers)
    schema.config.headers = headers
    calls: dict[str, Counter[int]] = {}
    failures: dict[str, None] = {}
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            failures[f"{event.label}: {event.value!r}"] = None
        if isinstance(event, ScenarioFinished):
            answers = [call.response for call in event.recorder.interactions.values() if call.response is not None]
            calls.setdefault(event.recorder.label, Counter()).update(answer.status_code for answer in answers)
            for case_id, checks in event.recorder.checks.items():
                for check in checks:
                    if check.status is Status.FAILURE and check.failure_info is not None:
                        case = event.recorder.cases[case_id].value
                        failures[f"{check.name}: {case.as_curl_command()}\n{check.failure_info.failure}"] = None
    return Fuzzed(calls, list(failures))


def _config(seed: int, examples: int, known: dict[str, str]) -> SchemathesisConfig:
    generation = {"max-examples": examples, "database": "none", "no-shrink": True}
    no_worker = {"expected-statuses": ["2xx", "4xx", "503"]}
    document: dict[str, Any] = {
        "seed": seed,
        "generation": generation,
        "continue-on-failure": True,
        "parameters": known,
        "suppress-health-check": ["all"],  # how hard it is to find examples says nothing about the service
        "checks": {"enabled": False, **{check: {"enabled": True} for check in CHECKS}},
        "phases": {"stateful": {"enabled": False}},
        "operations": [{"include-name": "GET /readyz", "checks": {"not_a_server_error": no_worker}}],
    }
    return SchemathesisConfig.from_dict(document)
