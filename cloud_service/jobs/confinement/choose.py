"""Makes the plan of each job's confinement, in the strongest mode that this machine allows.

    user         root's service: the job runs as another user, in a file tree of its own      Linux 5.12, root
    namespace    any service: a tree of its own, the service's user without its rights        user namespaces
    landlock     an allow-list of paths                                                       Linux 5.13
    none         limits alone; logged as a warning at each job

What a machine allows is found out by confining a command that does nothing, when the first job starts: some 0.1 s,
once. A mode that is asked for by name is never replaced by a weaker one. Knows nothing about what jobs do.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cloud_service.job_isolation import DEFAULT_JOB_UID, Isolation
from cloud_service.jobs.confinement.paths import home_environment, hub_caches, package_folders, resolved, system_paths
from cloud_service.jobs.confinement.plan import MODES, ConfinementPlan, Mode, Network
from cloud_service.jobs.messages import TEMPORARY_NAME, WORKSPACE_NAME, JobOrder
from cloud_service.jobs.order_sources import names_hub
from shared.durable_files import disk_errors
from shared.errors import ZoError

ENTER = (sys.executable, "-P", "-m", "cloud_service.jobs.confinement.enter")
_PROBE_SECONDS = 30
_RAY_SHARED_MEMORY_SHARE = 2
_SHARED_MEMORY_BYTES = 64 << 20
_logger = logging.getLogger(__name__)


class ConfinementError(ZoError):
    """This machine cannot confine jobs in the way that the settings ask for."""


@dataclass(frozen=True, slots=True)
class ConfinementRules:
    """What holds for every job of a service.

    Attributes:
        isolation: The mode; ``auto`` is the strongest that works.
        job_uid: User and group of jobs in mode ``user``; no other program may run as it.
        hidden: Folders that no job may see anything of but its own: the service's data.
    """

    isolation: Isolation = "auto"
    job_uid: int = DEFAULT_JOB_UID
    hidden: tuple[Path, ...] = ()


class Confinement:
    """Confines the jobs of one service.

    Args:
        rules: What holds for every job.
        environment: The environment of jobs' processes.
    """

    def __init__(self, rules: ConfinementRules, environment: Mapping[str, str]) -> None:
        self._rules = rules
        self._environment = dict(environment)
        self._mode: Mode | None = None
        self._lock = threading.Lock()

    def command(
        self,
        folder: Path,
        order: JobOrder,
        command: Sequence[str],
        limits: Mapping[str, tuple[int | None, int | None]],
    ) -> list[str]:
        """Return the command that confines ``command`` and runs it.

        Args:
            folder: The job's folder, which exists.
            order: What the job is to do.
            command: What to run; its first word is an absolute path.
            limits: Resource limits, see ``ConfinementPlan``.

        Raises:
            ConfinementError: The mode that the settings name does not work on this machine.
            DiskError: A folder that the job needs cannot be made.
        """
        plan = self._plan(folder, order, command, limits)
        with self._lock:
            if self._mode is None:
                self._mode = self._choose(plan)
        if self._mode == "none":
            _logger.warning(
                "a job runs without isolation: it can read what the service can", extra={"event": "unconfined"}
            )
        return [*ENTER, replace(plan, mode=self._mode).to_json(), *command]

    def _plan(
        self,
        folder: Path,
        order: JobOrder,
        command: Sequence[str],
        limits: Mapping[str, tuple[int | None, int | None]],
    ) -> ConfinementPlan:
        workspace, temporary = folder / WORKSPACE_NAME, folder / TEMPORARY_NAME
        caches = hub_caches(self._environment)
        uses_hub = names_hub(order)
        if uses_hub:
            for cache in caches:
                with disk_errors(cache):
                    cache.mkdir(parents=True, exist_ok=True)
        has_ray = order.launcher.kind == "ray"
        sources = [*order.model_roots, *order.text_roots]
        shown, links = resolved([*(path.absolute() for path in sources), *([] if uses_hub else caches)])
        system, system_links = resolved(system_paths(command, self._environment))
        writable, writable_links = resolved([workspace.absolute(), *(caches if uses_hub else [])])
        (place,), temporary_links = resolved([temporary.absolute()])
        return ConfinementPlan(
            mode="none",
            service_pid=os.getpid(),
            uid=self._rules.job_uid,
            network=_network(order, uses_hub=uses_hub),
            system=system,
            listable=resolved(package_folders())[0],
            readable=tuple(path for path in shown if path not in writable),
            writable=writable,
            hidden=resolved([path.absolute() for path in self._rules.hidden])[0],
            links=tuple((system_links | links | writable_links | temporary_links).items()),
            workspace=writable[0],
            temporary=place,
            shared_memory_bytes=_machine_bytes() // _RAY_SHARED_MEMORY_SHARE if has_ray else _SHARED_MEMORY_BYTES,
            environment=home_environment(self._environment),
            limits=dict(limits),
        )

    def _choose(self, plan: ConfinementPlan) -> Mode:
        if self._rules.isolation != "auto":
            if (reason := self._reason_against(replace(plan, mode=self._rules.isolation))) is not None:
                raise ConfinementError(
                    reason,
                    needed="a machine that allows the --job-isolation that was asked for",
                    next_step="the operator may use --job-isolation auto, which takes the strongest mode that works",
                    param="job-isolation",
                )
            return self._rules.isolation
        for mode in MODES:
            reason = self._reason_against(replace(plan, mode=mode))
            if reason is None:
                _logger.info("jobs are isolated by mode %s", mode, extra={"event": "isolation"})
                return mode
            _logger.info("%s", reason, extra={"event": "isolation"})
        return "none"

    def _reason_against(self, plan: ConfinementPlan) -> str | None:
        """Return why the mode cannot be used, or None where it can."""
        if plan.mode == "user" and os.geteuid() != 0:
            return "job isolation 'user': the service does not run as root"
        if plan.mode == "landlock" and (shown := _shown_secret(plan)) is not None:
            return f"job isolation 'landlock': {shown[0]} lies in {shown[1]}, which jobs may read"
        if plan.mode == "none":
            return None
        nothing = [sys.executable, "-I", "-S", "-c", ""]
        try:
            done = subprocess.run(
                [*ENTER, plan.to_json(), *nothing],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self._environment,
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"job isolation {plan.mode!r}: a command that does nothing took more than {_PROBE_SECONDS} s"
        if done.returncode == 0:
            return None
        try:
            return str(json.loads(done.stdout)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return f"job isolation {plan.mode!r}: {done.stderr.decode(errors='replace').strip()[-300:]}"


def _network(order: JobOrder, *, uses_hub: bool) -> Network:
    if (uses_hub and not order.is_offline) or order.launcher.ray_address is not None:
        return "all"
    return "loopback" if order.launcher.kind == "ray" else "none"


def _shown_secret(plan: ConfinementPlan) -> tuple[str, str] | None:
    """Return a hidden folder and a readable one that contains it, which an allow-list cannot take apart."""
    shown = (*plan.system, *plan.readable)
    pairs = ((secret, path) for secret in plan.hidden for path in shown if Path(secret).is_relative_to(path))
    return next(pairs, None)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
