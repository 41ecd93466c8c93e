"""Puts the service together: the only place where its parts meet.

    settings → database, keys, jobs, bundles → launcher, publisher, workers → routes → one ASGI application

One service at a time owns a data folder (a file lock), so at its start every running job is known to be abandoned.
Imports no torch: it starts in a second, and its image needs none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from fastapi import FastAPI

from cloud_service.host_limits import accelerator_count, machine_bytes
from cloud_service.housekeeping import Freed, Housekeeper, clean
from cloud_service.jobs.admission import check_request
from cloud_service.jobs.attempt import Workshop
from cloud_service.jobs.confinement.choose import Confinement, ConfinementRules
from cloud_service.jobs.confinement.visibility import hide_from_same_user
from cloud_service.jobs.launcher import RUN_JOB, Launcher, SubprocessLauncher
from cloud_service.jobs.limits import JobLimits, memory_ceiling
from cloud_service.jobs.publication import Publisher
from cloud_service.jobs.store import JobStore
from cloud_service.jobs.supervisor import Supervisor
from cloud_service.json_logs import log_as_json
from cloud_service.routes.access import Access, KeyFirst
from cloud_service.routes.bundles import bundle_routes
from cloud_service.routes.jobs import job_routes
from cloud_service.routes.metrics import RequestMetrics, ServiceState
from cloud_service.routes.operations import Check, operation_routes
from cloud_service.routes.problems import NotReady, add_problem_handlers
from cloud_service.routes.registry import registry_routes
from cloud_service.routes.requests import RequestEnvelope
from cloud_service.routes.token import token_routes
from cloud_service.routes.wrong_keys import WrongKeys
from cloud_service.serving.server import listen, run_server
from cloud_service.settings import Settings, check_exposure, check_roots, job_environment
from cloud_service.sources import SourcePolicy
from cloud_service.storage.audit import AuditLog
from cloud_service.storage.bundle_index import last_publisher
from cloud_service.storage.bundles import BundleStore
from cloud_service.storage.catalog import Catalog
from cloud_service.storage.database import open_database, reading
from cloud_service.storage.disk_reserve import DiskReserve
from cloud_service.storage.index_import import import_index
from cloud_service.storage.keys import KeyStore
from cloud_service.storage.private_folder import make_private
from cloud_service.storage.signing import BundleSigner
from cloud_service.storage.signing_keys import open_signing_key
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.bundle.write import remove_unfinished
from shared.durable_files import free_bytes
from shared.errors import Conflict, DiskError
from shared.file_lock import exclusive

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of a service that is open on its data folder."""

    settings: Settings
    engine: sa.Engine
    keys: KeyStore
    jobs: JobStore
    bundles: BundleStore
    catalog: Catalog
    publisher: str
    reserve: DiskReserve
    supervisor: Supervisor
    is_stopping: threading.Event


@contextlib.contextmanager
def open_service(settings: Settings, launcher: Launcher | None = None) -> Iterator[Service]:
    """Open the data folder and yield the service's parts; no worker runs yet.

    Args:
        settings: How to run.
        launcher: Where jobs run; None is a subprocess of this machine.

    Raises:
        Conflict: Another service uses the folder, or the signing key that has published is missing.
        DiskError: The folder cannot be written.
    """
    with _sole_service(settings.data), contextlib.closing(_Disposing(open_database(settings.database))) as database:
        engine, is_stopping = database.engine, threading.Event()
        reserve = DiskReserve(settings.reserve)
        reserve.fill()
        jobs = JobStore(engine, reserve=reserve)
        layout = ImageLayout.create(settings.store)
        remove_unfinished(layout)
        catalog = Catalog(engine, layout)
        import_index(engine, layout, settings.reports)
        with reading(engine) as connection:
            known = last_publisher(connection)
        key = open_signing_key(settings.signing_key, publisher_known=known)
        signer = BundleSigner(layout, key, timedelta(days=settings.release_days))
        bundles = BundleStore(engine, layout, settings.reports, signer, settings.immutable_tags)
        shop = Workshop(
            store=jobs,
            launcher=launcher or job_launcher(settings),
            publisher=Publisher(jobs, bundles, settings.lease_seconds),
            has_blob=catalog.has_bundle,
            settings=settings,
            is_stopping=is_stopping,
            limits=job_limits(settings),
        )
        supervisor = Supervisor(shop, owner=secrets.token_hex(8))
        yield Service(
            settings=settings,
            engine=engine,
            keys=KeyStore(engine),
            jobs=jobs,
            bundles=bundles,
            catalog=catalog,
            publisher=signer.publisher,
            reserve=reserve,
            supervisor=supervisor,
            is_stopping=is_stopping,
        )


def job_launcher(settings: Settings, command: Sequence[str] = RUN_JOB) -> SubprocessLauncher:
    """Return what runs jobs as confined processes of this machine.

    Args:
        settings: How jobs are confined.
        command: What to run.
    """
    environment = job_environment(hub_endpoint=settings.hub_endpoint)
    rules = ConfinementRules(settings.job_isolation, settings.job_uid, hidden=(settings.data,))
    confinement = Confinement(rules, environment)
    return SubprocessLauncher(environment, command, confinement=confinement, limits=job_limits(settings).for_kernel())


def job_limits(settings: Settings) -> JobLimits:
    """Return what each job may use."""
    return JobLimits(
        memory_bytes=memory_ceiling(machine_bytes(), settings.max_host_bytes),
        accelerators=accelerator_count(),
        tasks=settings.max_job_tasks,
        file_bytes=settings.max_job_file_bytes,
        stage_seconds=settings.stage_seconds,
    )


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application; its lifespan starts and stops the workers."""
    settings = service.settings
    access = Access(service.keys if settings.is_auth_enabled else None)
    metrics = RequestMetrics()
    metrics.registry.register(ServiceState(service.jobs.count_by_status, lambda: service.bundles.free_bytes))

    sources = SourcePolicy(settings.model_roots, settings.text_roots, hub_namespaces=settings.hub_namespaces)

    def check(request: PrepareRequest, key_id: str) -> None:
        service.keys.check_name(key_id, check_request(request, sources))

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        housekeeper = Housekeeper(lambda: _keep_house(service), service.is_stopping)
        service.supervisor.start()
        housekeeper.start()
        yield
        service.supervisor.stop()
        housekeeper.stop()

    app = FastAPI(title="zo-cloud", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(KeyFirst, access=access, wrong_keys=WrongKeys(settings.max_wrong_keys_per_minute))
    app.add_middleware(RequestEnvelope, metrics=metrics)
    add_problem_handlers(app)
    app.include_router(
        job_routes(
            service.jobs,
            access,
            check_request=check,
            check_owner=service.keys.check_owner,
            wake_workers=service.supervisor.wake,
            is_stopping=service.is_stopping,
            poll_seconds=settings.poll_seconds,
            max_queued_per_key=settings.max_queued_jobs_per_key,
        )
    )
    app.include_router(token_routes(access))
    app.include_router(registry_routes(service.catalog, access))
    log, check_name = AuditLog(service.engine), service.keys.check_name
    app.include_router(bundle_routes(service.bundles, service.catalog, log, access, check_name=check_name))
    app.include_router(operation_routes(_readiness(service), metrics, access))
    return app


def serve(settings: Settings, launcher: Launcher | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: finish open requests, stop jobs at a checkpoint, put them back.

    Logs go to standard output; the first key, made where there is none, goes to standard error once.

    Raises:
        InvalidRequest: The settings would expose the service, or name folders that are not there; see
            ``check_exposure`` and ``check_roots``.
        Conflict: The port or the data folder is in use.
    """
    check_exposure(settings)
    check_roots(settings)
    os.umask(0o077)  # what the service and its jobs make is for their user alone
    hide_from_same_user()
    log_as_json(sys.stdout)
    with open_service(settings, launcher) as service, listen(settings.host, settings.port) as listener:
        if settings.is_auth_enabled and (first := service.keys.create_first()) is not None:
            print(f"Admin key of this service, shown only once: {first}", file=sys.stderr, flush=True)  # noqa: T201
        _announce_publisher(service.publisher)
        run_server(create_app(service), settings, listener, service.is_stopping)


class _Disposing:
    """Closes a database at the end of a ``with``."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        self.engine.dispose()


def _keep_house(service: Service) -> Freed:
    """Do what is due now and then: keep space back for a full disk, renew signatures, delete what nobody needs."""
    service.reserve.fill()
    if renewed := service.bundles.renew_signatures(datetime.now(UTC)):
        _logger.info("%d signatures were renewed", renewed, extra={"event": "signed"})
    return clean(service.engine, service.settings)


def _announce_publisher(fingerprint: str) -> None:
    """Say which key signs here, so that operators can hand it to devices before their first contact."""
    line = f"For devices that are to trust only this service: ZO_DEVICE_TRUSTED_KEY={fingerprint}"
    print(line, file=sys.stderr, flush=True)  # noqa: T201
    _logger.info("bundles are signed by %s", fingerprint, extra={"event": "publisher"})


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
            raise DiskError(
                f"{free} bytes free", needed=f"{needed} bytes", next_step="zo-cloud gc frees what nobody needs"
            )

    def workers() -> None:
        if service.is_stopping.is_set() or not service.supervisor.is_working:
            raise NotReady("no worker takes jobs", next_step="wait until the service has started, or start it again")

    return {"database": database, "store": service.bundles.check_readable, "disk": disk, "workers": workers}
