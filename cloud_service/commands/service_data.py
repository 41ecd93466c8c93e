"""What commands that work beside a running service share: its data folder, its database, and how they answer.

Only ``zo-cloud serve`` makes a data folder. The other commands refuse one that does not exist or that no service has
used, because it is nearly always a mistyped or forgotten ``--data``; what they would make there would be found later
by nobody. The one exception is said out loud: ``keys create`` fills a folder that exists and is empty.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.durable_files import disk_errors
from shared.errors import NotFound

if TYPE_CHECKING:
    import sqlalchemy as sa

    from cloud_service.settings import Settings


def add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, run: Any
) -> argparse.ArgumentParser:
    """Add an action of a command, with the options that all of them have."""
    parser = actions.add_parser(name, help=summary, description=summary)
    add_data_options(parser)
    parser.set_defaults(run=run)
    return parser


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--json``."""
    parser.add_argument("--data", type=Path, default=None, help="the service's data folder, as given to serve")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the service whose folder is named."""
    from cloud_service.settings import load_settings

    return load_settings() if arguments.data is None else load_settings(data=arguments.data)


def existing_service(arguments: argparse.Namespace, *, may_be_empty: bool = False) -> Settings:
    """Return the settings, refusing a folder that no service has used; nothing is made.

    Args:
        arguments: The options of ``add_data_options``.
        may_be_empty: Whether an existing empty folder will do: somebody made it for a service that has yet to start.

    Raises:
        NotFound: There is no database in the folder.
        DiskError: The folder cannot be read.
    """
    settings = settings_of(arguments)
    if settings.database.is_file() or (may_be_empty and _is_empty_folder(settings.data)):
        return settings
    words = " ".join(word for word in (arguments.command, getattr(arguments, "action", None)) if word)
    raise NotFound(
        f"no service has kept its data in {settings.data}",
        needed="the folder that zo-cloud serve was given as --data" + (", or an empty one" if may_be_empty else ""),
        next_step=f"zo-cloud {words} --data FOLDER; zo-cloud serve --data FOLDER makes a new one",
        param="data",
    )


def _is_empty_folder(path: Path) -> bool:
    with disk_errors(path):
        return path.is_dir() and not any(path.iterdir())


@contextlib.contextmanager
def opened_database(settings: Settings) -> Iterator[sa.Engine]:
    """Open the service's database; a service that runs on it is not disturbed."""
    from cloud_service.storage.database import open_database

    engine = open_database(settings.database)
    try:
        yield engine
    finally:
        engine.dispose()


def print_result(arguments: argparse.Namespace, fields: dict[str, Any], text: str) -> None:
    """Print what a command came to, for programs or for people."""
    print(json.dumps(fields) if arguments.json else text)  # noqa: T201
