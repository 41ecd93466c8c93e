"""Puts the service together: the only place where its parts meet.

    settings → database, keys, jobs, bundles → launcher, publisher, workers → routes → one ASGI application

One service at a time owns a data folder (a file lock), so at its start every running job is known to be abandoned.
Imports no torch: it starts in a second, and its image needs none.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from fastapi import FastAPI

from cloud_service.jobs.admission import check_request
from cloud_service.jobs.attempt import Workshop
from cloud_service.jobs.launcher import Launcher, SubprocessLauncher
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.store import JobStore
from cloud_service.jobs.supervisor import Supervisor
from cloud_service.json_logs import log_as_json
from cloud_service.routes.access import Access, KeyFirst
from cloud_service.routes.jobs import job_routes
from cloud_service.routes.metrics import RequestMetrics, ServiceState
from cloud_service.routes.operations import Check, operation_routes
from cloud_service.routes.problems import NotReady, add_problem_handlers
from cloud_service.routes.registry import registry_routes
from cloud_service.routes.requests import RequestEnvelope
from cloud_service.routes.wrong_keys import WrongKeys
from cloud_service.serving.server import listen, run_server
from cloud_service.settings import Settings, check_exposure, job_environment
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.database import open_database, reading
from cloud_service.storage.disk_reserve import DiskReserve
from cloud_service.storage.keys import KeyStore
from cloud_service.storage.private_folder import make_private
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.bundle.signature import load_or_create_key
from shared.bundle.write import remove_unfinished
from shared.durable_files import free_bytes
from shared.errors import Conflict, DiskError
from shared.file_lock import exclusive


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a service that is open on its data folder."""

    settings: Settings
    engine: sa.Engine
    keys: KeyStore
    jobs: JobStore
    bundles: BundleStore
    supervisor: Supervisor
    is_stopping: threading.Event


@contextlib.contextmanager
def open_service(settings: Settings, launcher: Launcher | None = None) -> Iterator[Service]:
    """Open the data folder and yield the service's parts; no worker runs yet.

    Args:
        settings: How to run.
        launcher: Where jobs run; None is a subprocess of this machine.

    Raises:
        Conflict: Another service uses the folder.
        DiskError: The folder cannot be written.
    """
    with _sole_service(settings.data), contextlib.closing(_Disposing(open_database(settings.database))) as database:
        engine, is_stopping = database.engine, threading.Event()
        reserve = DiskReserve(settings.reserve)
        reserve.fill()
        jobs = JobStore(engine, reserve=reserve)
        layout = ImageLayout.create(settings.store)
        remove_unfinished(layout)
        bundles = BundleStore(layout, settings.reports, load_or_create_key(settings.signing_key))
        shop = Workshop(
            store=jobs,
            launcher=launcher or SubprocessLauncher(job_environment(hub_endpoint=settings.hub_endpoint)),
            publisher=Publisher(jobs, bundles, settings.lease_seconds),
            has_blob=layout.has_blob,
            settings=settings,
            is_stopping=is_stopping,
        )
        supervisor = Supervisor(shop, owner=secrets.token_hex(8))
        yield Service(settings, engine, KeyStore(engine), jobs, bundles, supervisor, is_stopping)


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application; its lifespan starts and stops the workers."""
    settings = service.settings
    access = Access(service.keys if settings.is_auth_enabled else None)
    metrics = RequestMetrics()
    metrics.registry.register(ServiceState(service.jobs.count_by_status, lambda: service.bundles.free_bytes))

    def check(request: PrepareRequest) -> None:
        check_request(request, model_roots=settings.model_roots, text_roots=settings.text_roots)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.supervisor.start()
        yield
        service.supervisor.stop()

    app = FastAPI(title="zo-cloud", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(KeyFirst, access=access, wrong_keys=WrongKeys(settings.max_wrong_keys_per_minute))
    app.add_middleware(RequestEnvelope, metrics=metrics)
    add_problem_handlers(app)
    app.include_router(
        job_routes(
            service.jobs,
            access,
            check_request=check,
            wake_workers=service.supervisor.wake,
            is_stopping=service.is_stopping,
            poll_seconds=settings.poll_seconds,
        )
    )
    app.include_router(registry_routes(service.bundles, access))
    app.include_router(operation_routes(_readiness(service), metrics, access))
    return app


def serve(settings: Settings, launcher: Launcher | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: finish open requests, stop jobs at a checkpoint, put them back.

    Logs go to standard output; the first key, made where there is none, goes to standard error once.

    Raises:
        InvalidRequest: The settings would expose the service; see ``check_exposure``.
        Conflict: The port or the data folder is in use.
    """
    check_exposure(settings)
    os.umask(0o077)  # what the service and its jobs make is for their user alone
    log_as_json(sys.stdout)
    with open_service(settings, launcher) as service, listen(settings.host, settings.port) as listener:
        if settings.is_auth_enabled and (first := service.keys.create_first()) is not None:
            print(f"Admin key of this service, shown only once: {first}", file=sys.stderr, flush=True)  # noqa: T201
        run_server(create_app(service), settings, listener, service.is_stopping)


class _Disposing:
    """Closes a database at the end of a ``with``."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        self.engine.dispose()


def _sole_service(data: Path) -> contextlib.AbstractContextManager[None]:
    """Make the data folder, for this user alone, and keep other services out of it."""
    make_private(data)
    busy = Conflict(
        f"another zo-cloud serve uses {data}",
        needed="a data folder of its own",
        next_step="stop the other one, or give --data another folder",
        param="data",
    )
    return exclusive(data / "service.lock", busy=busy)


def _readiness(service: Service) -> dict[str, Check]:
    def database() -> None:
        with reading(service.engine) as connection:
            connection.execute(sa.text("SELECT 1"))

    def disk() -> None:
        free, needed = free_bytes(service.settings.data), service.settings.min_free_bytes
        if free < needed:
            raise DiskError(f"{free} bytes free", needed=f"{needed} bytes")

    def workers() -> None:
        if service.is_stopping.is_set() or not service.supervisor.is_working:
            raise NotReady("no worker takes jobs")

    return {"database": database, "store": service.bundles.check_readable, "disk": disk, "workers": workers}
