"""The service's settings, and the only place where the cloud side reads environment variables.

Each field may be given as ``ZO_CLOUD_<NAME>``; lists as JSON (``ZO_CLOUD_MODEL_ROOTS='["/models"]'``). Options of the
command line win over the environment. ``ZO_CLOUD_DEBUG=1`` is none of them: it shows where an unexpected error of the
command line was raised.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from cloud_service.host_limits import own_processor_count, processor_count
from cloud_service.job_isolation import DEFAULT_JOB_UID, Isolation
from cloud_service.launcher_choice import LauncherChoice
from shared.api import Stage
from shared.byte_sizes import parse_bytes
from shared.errors import InvalidRequest
from shared.field_errors import first_fault

JOB_VARIABLES = frozenset(
    {
        "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "XDG_CACHE_HOME",
        "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "CUDA_HOME",
        "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES",
        "PYTORCH_CUDA_ALLOC_CONF", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH",
    }
)  # fmt: skip
"""What a job's process sees of the service's environment: nothing that could be a secret.

The token of a protected Ray cluster goes by the path of its file, never by ``RAY_AUTH_TOKEN``. A Ray cluster that a
preparation starts sees the same.
"""

PROXY_VARIABLES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})
"""Also passed on, in either case, unless the proxy's URL holds a password."""


def _byte_count(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except InvalidRequest as error:
        raise ValueError(f"{error.found}; needed: {error.needed}") from error


ByteCount = Annotated[int, BeforeValidator(_byte_count), Field(ge=1)]
"""A number of bytes, or a size as people write it."""

Root = Annotated[Path, AfterValidator(Path.absolute)]
"""A folder as seen from where the service was started: jobs have another working directory."""


class Settings(BaseSettings):
    """How one service runs.

    Attributes:
        data: Folder of the database, jobs, store, reports and signing key; one service at a time may use it.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose, the first log line names it.
        model_roots: Folders under which a request may name a local model.
        hub_namespaces: Patterns of the hub ids that a request may name without ``hub:`` in front; ``*`` allows all.
        text_roots: Folders under which a request may name a local calibration or evaluation text.
        hub_endpoint: The only hub that models and C4 are fetched from; None is the library's default.
        hub_token: Token for gated models; it reaches a job through its pipe, never through its environment.
        is_offline: Use only what is on this machine.
        workers: Jobs that run at the same time.
        max_attempts: Crashes (an end without a result or an error of ours) without progress after which a job fails.
        max_queued_jobs_per_key: Jobs that one API key may have waiting; further requests get 429.
        lease_seconds: How long a job stays a worker's without a heartbeat.
        poll_seconds: How often workers look for new jobs and cancellations, and event streams for new events.
        progress_seconds: Shortest time between two progress events of a stage.
        cancel_grace_seconds: Time between SIGTERM and SIGKILL for a job's process.
        drain_seconds: How long open requests may take after SIGTERM.
        max_accelerator_bytes: What a job may use of each accelerator; None allows all of it. Sizes such as ``24GiB``.
        max_host_bytes: What a job may use of main memory; None allows what is free.
        launcher: Where a job's Fisher pass runs: ``local`` (the job's process) or ``ray`` (tasks on a Ray cluster).
        ray_address: Of a running cluster; None starts one on this machine for each pass. Where it asks for a token,
            the variables RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE are passed on to jobs.
        ray_workers: Ray tasks that run at the same time.
        ray_worker_threads: Processor threads of each. Another number gives sums that differ in their last bits; those
            of ``local`` are OMP_NUM_THREADS, or all cores.
        ray_worker_gpus: Accelerators of each; 0 computes on the processor.
        job_isolation: How a job's process is kept from the service's data and the network; ``auto`` takes the strongest
            way that works here, another one is used or the job fails. See ADR 0018.
        job_uid: User and group that jobs run as where ``job_isolation`` is ``user``; nothing else may run as it.
        max_job_tasks: Processes and threads of a job.
        max_job_file_bytes: Length of any file that a job writes, the model's files in the hub's cache included.
        stage_seconds: Longest time of an attempt in a stage, by the stage's name; generous where it is not given.
        header_timeout_seconds: From a connection, or from its last answer, to a request's complete head.
        body_timeout_seconds: From a request's head to the end of its body.
        write_stall_seconds: Time without a single byte taken, after which a client that is sent something is cut off.
        max_connections: Open at the same time; for a new one the oldest without a request is closed.
        max_connections_per_address: The same for one client address; 0 is no limit, for use behind a proxy.
        max_wrong_keys_per_minute: From one client address; more are answered with 429. Right keys always pass.
        forwarded_allow_ips: Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
        min_free_bytes: ``/readyz`` fails below this much free disk.
        immutable_tags: Patterns of tags, such as ``v*``, that name the same digest for ever once they are published.
        release_days: How long devices may take what a tag means for the newest; signed again at half of it.
        blob_grace_hours: How long a blob that no bundle needs any more is kept.
        workspace_retention_days: How long a failed or cancelled job's checkpoints are kept for a repeated request.
        log_retention_days: How long the log and the report page of a job that is over are kept.
        is_auth_enabled: Whether API keys are needed.
        is_public_without_tls_allowed: Whether a non-loopback address may be served in plain HTTP.
    """

    model_config = SettingsConfigDict(env_prefix="ZO_CLOUD_", extra="forbid", frozen=True)

    data: Root = Field(default_factory=lambda: Path.home() / ".local" / "share" / "zo-cloud")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    model_roots: tuple[Root, ...] = ()
    hub_namespaces: tuple[str, ...] = ()
    text_roots: tuple[Root, ...] = ()
    hub_endpoint: str | None = None
    hub_token: SecretStr | None = None
    is_offline: bool = False
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_attempts: Annotated[int, Field(ge=1)] = 5
    max_queued_jobs_per_key: Annotated[int, Field(ge=1)] = 100
    lease_seconds: Annotated[float, Field(gt=0)] = 30.0
    poll_seconds: Annotated[float, Field(gt=0)] = 0.5
    progress_seconds: Annotated[float, Field(ge=0)] = 1.0
    cancel_grace_seconds: Annotated[float, Field(ge=0)] = 15.0
    drain_seconds: Annotated[int, Field(ge=1)] = 20
    max_accelerator_bytes: ByteCount | None = None
    max_host_bytes: ByteCount | None = None
    launcher: Literal["local", "ray"] = "local"
    ray_address: Annotated[str, Field(min_length=1)] | None = None
    ray_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    ray_worker_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    ray_worker_gpus: Annotated[int, Field(ge=0, le=64)] = 0
    job_isolation: Isolation = "auto"
    job_uid: Annotated[int, Field(ge=1, lt=2**31)] = DEFAULT_JOB_UID
    max_job_tasks: Annotated[int, Field(ge=64)] = 4096
    max_job_file_bytes: ByteCount = 64 * 1024**3
    stage_seconds: dict[Stage, Annotated[float, Field(gt=0)]] = {}
    header_timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    body_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    write_stall_seconds: Annotated[float, Field(gt=0)] = 60.0
    max_connections: Annotated[int, Field(ge=8)] = 512
    max_connections_per_address: Annotated[int, Field(ge=0)] = 256
    max_wrong_keys_per_minute: Annotated[int, Field(ge=1)] = 10
    forwarded_allow_ips: tuple[str, ...] = ()
    min_free_bytes: Annotated[int, Field(ge=0)] = 1024**3
    immutable_tags: tuple[str, ...] = ()
    release_days: Annotated[int, Field(ge=1, le=3650)] = 30
    blob_grace_hours: Annotated[float, Field(ge=0)] = 24.0
    workspace_retention_days: Annotated[float, Field(ge=0)] = 7.0
    log_retention_days: Annotated[float, Field(ge=0)] = 30.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    is_auth_enabled: bool = True
    is_public_without_tls_allowed: bool = False

    @property
    def launcher_choice(self) -> LauncherChoice:
        """The launcher, with what Ray needs to know."""
        return LauncherChoice(
            self.launcher, self.ray_address, self.ray_workers, self.ray_worker_threads, self.ray_worker_gpus
        )

    @property
    def hub_token_text(self) -> str | None:
        """The hub token in the clear."""
        return None if self.hub_token is None else self.hub_token.get_secret_value()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "jobs.sqlite3"

    @property
    def reserve(self) -> Path:
        """Disk space that is kept back for ending jobs on a full disk."""
        return self.data / "reserve.bin"

    @property
    def jobs(self) -> Path:
        """Folder of one folder per job."""
        return self.data / "jobs"

    @property
    def store(self) -> Path:
        """The image layout that bundles are published in."""
        return self.data / "store"

    @property
    def reports(self) -> Path:
        """Folder of the report pages, named by manifest digest."""
        return self.data / "reports"

    @property
    def signing_key(self) -> Path:
        """The publisher's private key; only the service's process reads it."""
        return self.data / "signing-key.pem"

    @property
    def has_tls(self) -> bool:
        """Whether certificate and key are given."""
        return self.tls_certificate is not None and self.tls_key is not None


def load_settings(**options: object) -> Settings:
    """Return the settings from the environment, with ``options`` in place of what it says.

    Raises:
        InvalidRequest: A value is malformed or out of range, or an option of Ray's is given for another launcher;
            ``param`` names its field.
    """
    settings = _settings(options)
    stray = next((name for name in options if name.startswith("ray_")), None)
    if stray and settings.launcher != "ray":
        option = f"--{stray.replace('_', '-')}"
        raise InvalidRequest(
            f"{option} with --launcher {settings.launcher}",
            needed="--launcher ray",
            next_step=f"add --launcher ray, or leave out {option}",
            param=stray,
        )
    return settings


def _settings(options: Mapping[str, object]) -> Settings:
    try:
        return Settings(**options)  # type: ignore[arg-type]  # checked by pydantic
    except ValidationError as error:
        fault = first_fault(error)
        variable = f"ZO_CLOUD_{fault.field.partition('.')[0].upper()}"
        raise InvalidRequest(
            fault.found_in(fault.field),
            needed=fault.needed,
            next_step=f"correct the option or the variable {variable}; zo-cloud serve --help lists the options",
            param=fault.field,
        ) from error
    except SettingsError as error:
        raise InvalidRequest(
            str(error),
            needed="lists as JSON, such as '[\"/models\"]'",
            next_step="correct the variable ZO_CLOUD_… of that name",
        ) from error


def check_roots(settings: Settings) -> None:
    """Refuse roots that are no folders: requests would find nothing there, and nobody would know why.

    A disk that is mounted later has to be there first; then no request sees half of what it should.

    Raises:
        InvalidRequest: A root does not exist, or is something else than a folder.
    """
    for option, roots in (("model-root", settings.model_roots), ("text-root", settings.text_roots)):
        for root in roots:
            if not root.is_dir():
                raise InvalidRequest(
                    f"--{option} {root}, which is {'not a folder' if root.exists() else 'not there'}",
                    needed="an existing folder",
                    next_step=f"check the path, mount its disk before the service starts, or leave --{option} out",
                    param=option,
                )


def check_exposure(settings: Settings) -> None:
    """Refuse to listen in a way that would show keys or jobs to the network by accident.

    Raises:
        InvalidRequest: A non-loopback address without TLS and without the explicit flag, or without keys; or only one
            of the two TLS files, or one that does not exist.
    """
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise InvalidRequest(
            "only one of --tls-cert and --tls-key", needed="both", next_step="give the other one too", param="tls-cert"
        )
    for file in (settings.tls_certificate, settings.tls_key):
        if file is not None and not file.is_file():
            raise InvalidRequest(
                f"no file {file}",
                needed="a PEM file",
                next_step="check the path of --tls-cert and --tls-key",
                param="tls-cert",
            )
    if is_loopback(settings.host):
        return
    if not settings.is_auth_enabled:
        raise InvalidRequest(
            f"--no-auth on {settings.host}",
            needed="an address of this machine only, such as 127.0.0.1",
            next_step="leave out --no-auth, or use --host 127.0.0.1",
            param="no-auth",
        )
    if not settings.has_tls and not settings.is_public_without_tls_allowed:
        raise InvalidRequest(
            f"--host {settings.host} without TLS: keys would cross the network readable",
            needed="--tls-cert and --tls-key",
            next_step="give both, or --insecure-public where a proxy in front terminates TLS",
            param="host",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_debugging() -> bool:
    """Whether ``ZO_CLOUD_DEBUG`` asks the command line for the traceback of an unexpected error."""
    return os.environ.get("ZO_CLOUD_DEBUG", "") not in ("", "0")


def thread_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return how the threads that compute wait, and how many there are, where the environment leaves it open.

    OpenMP's threads wait for each other actively by default: where another process is busy on the same processors, they
    take the time of the thread they wait for, and a Fisher pass took three times as long as on one thread. Waiting
    asleep, work slows in proportion to what others take. Has to be set before torch is imported.

    Args:
        environment: What is set; None is this process's.
    """
    given = os.environ if environment is None else environment
    chosen = {"OMP_WAIT_POLICY": "passive"}
    if (allowed := processor_count()) < own_processor_count():
        chosen["OMP_NUM_THREADS"] = str(allowed)
    return {name: value for name, value in chosen.items() if name not in given}


def use_sleeping_threads() -> None:
    """Apply ``thread_environment`` to this process; to be called before torch is imported."""
    os.environ.update(thread_environment())


def job_environment(environment: Mapping[str, str] | None = None, *, hub_endpoint: str | None = None) -> dict[str, str]:
    """Return the environment of a job's process: the allow-listed variables, and no tokens from the hub's own files.

    Args:
        environment: The service's; None is this process's.
        hub_endpoint: What HF_ENDPOINT says to the libraries that know no other way (``datasets``); None leaves it out.
    """
    given = os.environ if environment is None else environment
    kept = {name: value for name, value in given.items() if name in JOB_VARIABLES or _is_open_proxy(name, value)}
    endpoint = {} if hub_endpoint is None else {"HF_ENDPOINT": hub_endpoint}
    return (
        thread_environment(given)
        | kept
        | endpoint
        | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    )


def _is_open_proxy(name: str, value: str) -> bool:
    if name.upper() not in PROXY_VARIABLES:
        return False
    try:
        return "@" not in urlsplit(value if "//" in value else f"//{value}").netloc
    except ValueError:
        return False
