"""``zo-device runs compare``: settings that differ, results and curves of runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.settings import Settings
from shared.durable_files import disk_errors, write_atomically
from shared.errors import InvalidRequest

NAME = "compare"
HELP = "show settings that differ, results and curves of runs side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="names or folders of two runs or more")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write it as an HTML page, too")


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Show the runs side by side.

    Raises:
        InvalidRequest: Only one run is named.
        NotFound: There is no such run.
        IntegrityError: A file of a run is damaged.
        DiskError: The page cannot be written.
    """
    from device_client.run_pages.comparison import compare_runs, comparison_page, shown_lines
    from device_client.run_pages.run_view import read_run
    from device_client.tuning.curve import sparkline
    from device_client.tuning.run_directory import locate_run

    if len(arguments.runs) < 2:
        raise InvalidRequest("one run", needed="two runs or more", next_step="zo-device runs compare RUN RUN")
    found = compare_runs([read_run(locate_run(settings.runs, name).path) for name in arguments.runs])
    different, results = shown_lines(found)
    if different:
        console.table("Settings that differ", ("", *found.names), [(name, *cells) for name, cells in different])
    else:
        console.say("No setting differs.")
    curves = [sparkline([y for _, y in run.validation_points()], width=24) for run in found.runs]
    console.table(
        "Results", ("", *found.names), [*((name, *cells) for name, cells in results), ("validation curve", *curves)]
    )
    for warning in found.warnings:
        console.warn(warning)
    if arguments.page:
        with disk_errors(arguments.page):
            write_atomically(arguments.page, comparison_page(found), mode=0o600)
        console.say(f"Page: {arguments.page}")
    return found.as_json() | {"page": str(arguments.page) if arguments.page else None}
