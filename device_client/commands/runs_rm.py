"""``zo-device runs rm``: delete runs, with their tuned values.

A run in use is refused: whoever tunes holds its journal's lock. Only files that runs consist of are deleted, so a
folder that was given as ``--output`` keeps what else is in it.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from device_client.console import Console
from device_client.settings import Settings
from shared.byte_sizes import format_bytes
from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from device_client.tuning.run_directory import RunDirectory

NAME = "rm"
HELP = "delete runs with their tuned values; bundles stay"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names or folders of runs")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Delete the runs, after asking.

    Raises:
        NotFound: There is no such run; none is deleted then.
        Conflict: A run is in use.
        InvalidRequest: Nobody is there to be asked.
        DiskError: A file cannot be deleted.
    """
    from device_client.tuning.run_directory import locate_run
    from device_client.tuning.run_removal import remove_run

    found = [locate_run(settings.runs, name) for name in dict.fromkeys(arguments.runs)]
    if not arguments.yes and not _is_wanted(found, console):
        console.say("Nothing was deleted.")
        return {"removed": [], "freed_bytes": 0}
    freed = sum(map(remove_run, found))
    for run_directory in found:
        rest = "; what else is in its folder stays" if run_directory.files() else ""
        console.say(f"{run_directory.name} is removed{rest}")
    return {"removed": [str(each.path) for each in found], "freed_bytes": freed}


def _is_wanted(found: list[RunDirectory], console: Console) -> bool:
    from device_client.tuning.run_removal import used_bytes

    names = ", ".join(f"{each.name} ({format_bytes(used_bytes(each))})" for each in found)
    if not sys.stdin.isatty():
        raise InvalidRequest(
            f"nobody is there to be asked whether to delete {names}", needed="a terminal, or --yes", param="yes"
        )
    console.say(f"Delete {names}? Tuned values cannot be made again without the rows. [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
