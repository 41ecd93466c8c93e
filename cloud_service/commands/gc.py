"""``zo-cloud gc``: delete what nobody needs any more now, instead of within the hour. Works beside a running service.

Blobs that no published bundle needs, their reports, workspaces and logs of jobs that are over, each after its time.
"""

from __future__ import annotations

import argparse

from cloud_service.commands.service_data import add_data_options, existing_service, opened_database, print_result
from shared.byte_sizes import format_bytes


def add_gc_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("gc", help="free the disk of what nobody needs any more", description=__doc__)
    add_data_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be deleted")
    parser.add_argument(
        "--grace-hours",
        type=float,
        metavar="N",
        help="how long a blob is kept after it was first seen to be unneeded (default: 24)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from cloud_service.housekeeping import clean
    from cloud_service.settings import load_settings

    settings = existing_service(arguments)
    if arguments.grace_hours is not None:
        settings = load_settings(data=settings.data, blob_grace_hours=arguments.grace_hours)
    with opened_database(settings) as engine:
        freed = clean(engine, settings, is_dry_run=arguments.dry_run).to_fields()
    verb = "would delete" if arguments.dry_run else "deleted"
    text = (
        f"{verb} {freed['blobs']} blobs ({format_bytes(freed['blob_bytes'])}), {freed['reports']} reports, "
        f"{freed['workspaces']} workspaces and {freed['job_folders']} job folders "
        f"({format_bytes(freed['job_bytes'])}); {freed['waiting_blobs']} blobs wait for their grace period"
    )
    print_result(arguments, {"is_dry_run": arguments.dry_run, **freed}, text)
