"""``zo-device runs report``: a run as one self-contained HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.settings import Settings

NAME = "report"
HELP = "write a run as one HTML page: curves, what it took, and some rows before and after"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the run and the page."""
    parser.add_argument("run_name", metavar="RUN", help="name or folder of a run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: report.html in the run's folder)"
    )
    parser.add_argument(
        "--without-rows", action="store_true", help="leave your rows out, so that it can be shown around"
    )


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Write the page.

    Raises:
        NotFound: There is no such run.
        IntegrityError: A file of the run is damaged.
        DiskError: The page cannot be written.
    """
    from device_client.run_pages.report_page import write_report
    from device_client.tuning.run_directory import locate_run

    found = locate_run(settings.runs, arguments.run_name)
    page = write_report(found.path, arguments.output, has_rows=not arguments.without_rows)
    kept = (found.read_json("answers.json") or {}).get("shown", [])
    has_rows = bool(kept) and not arguments.without_rows
    console.say(f"Page: {page}" + (", which holds rows of your data" if has_rows else ""))
    return {"run": str(found.path), "page": str(page), "has_rows": has_rows}
