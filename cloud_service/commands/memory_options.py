"""The options ``--max-accelerator-bytes`` and ``--max-host-bytes``, in sizes as people write them (``24GiB``)."""

from __future__ import annotations

import argparse

from cloud_service.memory_budget import MemoryBudget
from shared.byte_sizes import parse_bytes
from shared.errors import InvalidRequest

MEMORY_OPTIONS = {
    "--max-accelerator-bytes": "memory to use of each accelerator, such as 24GiB (default: all of it)",
    "--max-host-bytes": "main memory to use for a preparation, such as 64GiB (default: what is free)",
}


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add both options to a command."""
    for option, text in MEMORY_OPTIONS.items():
        parser.add_argument(option, metavar="SIZE", help=text)


def memory_budget(arguments: argparse.Namespace) -> MemoryBudget:
    """Return the budget that the options, or else the environment, give.

    Raises:
        InvalidRequest: A size is malformed.
    """
    from cloud_service.settings import load_settings

    # Parsed here, not by the settings, whose message would speak of another command's options.
    names = ("max_accelerator_bytes", "max_host_bytes")
    given = {name: _size(name, value) for name in names if (value := getattr(arguments, name)) is not None}
    settings = load_settings(**given)
    return MemoryBudget(settings.max_accelerator_bytes, settings.max_host_bytes)


def _size(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except InvalidRequest as error:
        option = "--" + name.replace("_", "-")
        raise InvalidRequest(
            f"{option}: {error.found}", needed=error.needed, next_step=f"give {option} 24GiB, or the like", param=name
        ) from error
