"""What a command's work is done with: the options of memory and launcher, and of the device where it has one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cloud_service.commands.launcher_options import add_launcher_options, launcher_choice
from cloud_service.commands.memory_options import add_memory_options, memory_budget

if TYPE_CHECKING:
    from cloud_service.pipeline.opening.planned_model import Means


def add_means_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of memory and launcher."""
    add_memory_options(parser)
    add_launcher_options(parser)


def means_of(arguments: argparse.Namespace, *, device: str | None = None) -> Means:
    """Return the launcher and the memory budget that the options, or else the environment, give, with the device.

    Raises:
        InvalidRequest: A value is malformed, or Ray is chosen but not installed.
    """
    from cloud_service.pipeline.fisher.launchers.choose import choose_launcher
    from cloud_service.pipeline.opening.planned_model import Means

    return Means(choose_launcher(launcher_choice(arguments)), memory_budget(arguments), device)
