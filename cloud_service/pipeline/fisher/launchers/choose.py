"""Makes the launcher that a choice names; Ray is imported only where it is chosen."""

from __future__ import annotations

import importlib.util

from cloud_service.launcher_choice import LauncherChoice
from cloud_service.pipeline.fisher.launchers.local import FisherLauncher, LocalLauncher
from shared.errors import InvalidRequest


def choose_launcher(choice: LauncherChoice) -> FisherLauncher:
    """Return the launcher.

    Raises:
        InvalidRequest: Ray is chosen but not installed.
    """
    if choice.kind == "local":
        return LocalLauncher()
    if importlib.util.find_spec("ray") is None:
        raise InvalidRequest(
            "launcher 'ray', but Ray is not installed",
            needed="the package ray",
            next_step="pip install 'zo-device[cloud,ray]'",
            param="launcher",
        )
    from cloud_service.pipeline.fisher.launchers.ray_cluster import RayLauncher

    return RayLauncher(
        address=choice.ray_address,
        workers=choice.ray_workers,
        threads=choice.ray_worker_threads,
        gpus=choice.ray_worker_gpus,
    )
