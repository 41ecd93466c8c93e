"""Joins a running Ray cluster, or starts one of this machine's own that nobody else can reach, see into or outlive.

    its sockets       on 127.0.0.1 alone, behind Ray's own token, as Ray decides; checked after the start
    its environment   what a job's process sees (``settings.job_environment``): no token of a hub, no other secret
    its files         in a private folder, removed at the end

This process's environment and signal handlers are as before once the connection stands. Where this process is killed,
Ray's reaper ends the cluster within seconds; two of its agents without workers or sockets to the outside stay for
up to two minutes, and the private folder stays. Knows nothing about what is computed.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloud_service.settings import job_environment
from shared.errors import ResourceError

_LOOPBACK = "127.0.0.1"
_OWN_CLUSTER_ENVIRONMENT = {
    # The one switch that keeps Ray from replacing 127.0.0.1 by the machine's outward address; read at its import.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
_CONNECT_SECONDS = 10.0
_LONGEST_FOLDER = 24
"""Ray appends some 75 characters, and a socket's path has at most 107."""


def connection(address: str | None, *, processors: int, gpus: int) -> AbstractContextManager[None]:
    """Return a context in which this process is connected to a cluster.

    Args:
        address: Of a running cluster, as ``ray.init`` takes it; None goes on with the cluster that this process is
            connected to, and else starts one of its own and stops it at the end.
        processors: Of the own cluster.
        gpus: Accelerators that one task needs.

    Raises:
        ResourceError: On entering: the cluster cannot be reached or started, or lacks accelerators.
    """
    if address is not None:
        return _joined(address)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return nullcontext()
    return own_cluster(processors=processors, gpus=gpus)


@contextmanager
def own_cluster(*, processors: int, gpus: int = 0) -> Iterator[None]:
    """Start a cluster on this machine, with this process as its only driver; stop it at the end.

    Args:
        processors: How many single-threaded tasks it runs at the same time.
        gpus: Accelerators that one task needs.

    Raises:
        ResourceError: It does not start, is not on the loopback interface, or lacks accelerators.
    """
    with tempfile.TemporaryDirectory(prefix="zo-ray-", dir=_short_folder(), ignore_cleanup_errors=True) as private:
        own = {
            "num_cpus": processors,
            "include_dashboard": False,
            "_node_ip_address": _LOOPBACK,
            "_temp_dir": str(Path(private, "ray")),  # Ray opens it to everybody, but not the folder that it lies in
        }
        with _connected("local", job_environment() | _OWN_CLUSTER_ENVIRONMENT, own) as ray:
            _check_own(ray, gpus)
            yield


@contextmanager
def _joined(address: str) -> Iterator[None]:
    try:
        _check_that_it_listens(address)
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error
    with _connected(address, os.environ.copy(), {}):
        yield


@contextmanager
def _connected(address: str, environment: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[Any]:
    """Import Ray and connect in that environment; yield the module; disconnect, which stops a cluster of our own."""
    with _environment(environment):
        import ray
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        try:
            with _signal_handlers_kept(), _environment(environment):
                ray.init(address, **_QUIET, **options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise _unreachable(address, error) from error
        yield ray
    finally:
        ray.shutdown()


def _check_own(ray: Any, gpus: int) -> None:
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise ResourceError(
            "Ray was imported before it could be told to stay on 127.0.0.1: others could reach its cluster",
            needed="a process that has not used Ray before",
            next_step="run the command in a process of its own",
        )
    if (found := int(ray.cluster_resources().get("GPU", 0))) < gpus:
        raise ResourceError(
            f"{found} accelerators on this machine, and workers that take {gpus} each",
            needed=f"{gpus} accelerators",
            next_step="lower --ray-worker-gpus, or name a cluster that has them by --ray-address",
            param="ray_worker_gpus",
        )


def _unreachable(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"no Ray cluster at {'this machine' if address == 'local' else address}: {error}",
        needed="a cluster that runs the same versions of Ray and Python, and its token where it asks for one",
        next_step="check the address and RAY_AUTH_TOKEN_PATH, or leave both out to use this machine's processors",
    )


def _check_that_it_listens(address: str) -> None:
    """Raise OSError where nobody listens; Ray itself would try for many minutes."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Let this process, and what it starts, have that environment and no other; restore it afterwards."""
    before = dict(os.environ)
    _set_environment(wanted)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Undo that ``ray.init`` takes over SIGTERM, which is how a preparation is asked to stop."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _short_folder() -> str:
    """Return the system's temporary folder, or /tmp where its path is too long for the sockets below it."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108 - a private folder is made in it
