"""``zo-cloud report WHAT``: measurements that help an operator choose how to prepare a model; nothing is published."""

from __future__ import annotations

import argparse

from cloud_service.commands.report_coverage import add_coverage
from cloud_service.commands.report_quantizers import add_quantizers


def add_report_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser; every report adds itself and is a file of its own."""
    parser = commands.add_parser("report", help="measure how a model should be prepared", description=__doc__)
    reports = parser.add_subparsers(dest="report", required=True, metavar="WHAT")
    add_coverage(reports)
    add_quantizers(reports)
