"""Options that say where the Fisher pass runs: in this process, or on a Ray cluster."""

from __future__ import annotations

import argparse
from typing import Any

from cloud_service.launcher_choice import LauncherChoice

LAUNCHER_OPTIONS: dict[str, dict[str, Any]] = {
    "--launcher": {
        "choices": ["local", "ray"],
        "help": "local: in one process; ray: calibration shards as tasks on a Ray cluster (default: local)",
    },
    "--ray-address": {
        "metavar": "HOST:PORT",
        "help": "a running cluster (default: one on this machine, on 127.0.0.1 alone); RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH name its token",
    },
    "--ray-workers": {
        "type": int, "metavar": "N",
        "help": "tasks that run at the same time, each with the network in memory (default: 1)",
    },
    "--ray-worker-threads": {
        "type": int, "metavar": "N",
        "help": "processor threads of each (default: 1); equal digests need equal threads: for --launcher local "
        "OMP_NUM_THREADS says how many, else it takes all cores",
    },
    "--ray-worker-gpus": {
        "type": int, "metavar": "N",
        "help": "accelerators of each; 0 computes on the processor (default: 0)",
    },
}  # fmt: skip


def add_launcher_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command that runs Fisher passes."""
    group = parser.add_argument_group("where the Fisher pass runs")
    for option, settings in LAUNCHER_OPTIONS.items():
        group.add_argument(option, **settings)


def launcher_choice(arguments: argparse.Namespace) -> LauncherChoice:
    """Return the launcher that the options, or else the environment, give.

    Raises:
        InvalidRequest: A number is out of range, or an option of Ray's is given for another launcher.
    """
    from cloud_service.settings import load_settings

    names = (option.removeprefix("--").replace("-", "_") for option in LAUNCHER_OPTIONS)
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return load_settings(**given).launcher_choice
