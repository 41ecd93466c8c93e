"""What a report's Fisher pass is done with, by the options of memory and launcher."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cloud_service.commands.launcher_options import launcher_choice
from cloud_service.commands.memory_options import memory_budget

if TYPE_CHECKING:
    from cloud_service.pipeline.planned_model import Means


def means_of(arguments: argparse.Namespace) -> Means:
    """Return the launcher and the memory budget that the options, or else the environment, give.

    Raises:
        InvalidRequest: A value is malformed, or Ray is chosen but not installed.
    """
    from cloud_service.pipeline.launchers.choose import choose_launcher
    from cloud_service.pipeline.planned_model import Means

    return Means(choose_launcher(launcher_choice(arguments)), memory_budget(arguments))
