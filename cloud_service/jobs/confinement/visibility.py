"""Keeps this process's memory and environment from other processes of its user, jobs among them."""

from __future__ import annotations

import sys

from cloud_service.jobs.confinement.syscalls import PR_SET_DUMPABLE, prctl


def hide_from_same_user() -> None:
    """Refuse to be traced and to leave core dumps: ``/proc/PID/environ`` and ``mem`` are root's alone (Linux only)."""
    if sys.platform == "linux":
        prctl(PR_SET_DUMPABLE, 0)
