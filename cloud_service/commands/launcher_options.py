"""Options that say where the Fisher pass runs: in this process, or on a Ray cluster."""

from __future__ import annotations

import argparse
from typing import Any

from cloud_service.launcher_choice import LauncherChoice
from shared.errors import InvalidRequest

RAY_OPTIONS = ("ray_address", "ray_workers", "ray_worker_threads", "ray_worker_gpus")
LAUNCHER_OPTIONS: dict[str, dict[str, Any]] = {
    "--launcher": {
        "choices": ["local", "ray"],
        "help": "local: in one process; ray: calibration shards as tasks on a Ray cluster (default: local)",
    },
    "--ray-address": {"metavar": "HOST:PORT", "help": "a running cluster (default: one on this machine)"},
    "--ray-workers": {"type": int, "metavar": "N", "help": "tasks that run at the same time (default: 1)"},
    "--ray-worker-threads": {"type": int, "metavar": "N", "help": "processor threads of each (default: 1)"},
    "--ray-worker-gpus": {"type": int, "metavar": "N", "help": "accelerators of each (default: 0)"},
}


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that runs Fisher passes."""
    group = parser.add_argument_group("where the Fisher pass runs")
    for option, settings in LAUNCHER_OPTIONS.items():
        group.add_argument(option, **settings)


def given_launcher_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the options that were given, named as the settings are.

    Raises:
        InvalidRequest: An option of Ray's beside another launcher.
    """
    given = {name: value for name in ("launcher", *RAY_OPTIONS) if (value := getattr(arguments, name)) is not None}
    if given.get("launcher") == "local" and (stray := [name for name in RAY_OPTIONS if name in given]):
        option = "--" + stray[0].replace("_", "-")
        raise InvalidRequest(f"{option} with --launcher local", needed="--launcher ray", param=stray[0])
    return given


def launcher_choice(arguments: argparse.Namespace) -> LauncherChoice:
    """Return the launcher that the options, or else the environment, give.

    Raises:
        InvalidRequest: A number is out of range, or an option of Ray's is given for another launcher.
    """
    from cloud_service.settings import load_settings

    settings = load_settings(**given_launcher_options(arguments))
    if settings.launcher == "local" and any(getattr(arguments, name) is not None for name in RAY_OPTIONS):
        raise InvalidRequest("options of Ray's without --launcher ray", needed="--launcher ray", param="launcher")
    return settings.launcher_choice
