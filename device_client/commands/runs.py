"""``zo-device runs``: the tuning runs of this machine; what they came to, side by side or as a page; their removal."""

from __future__ import annotations

import argparse
from typing import Any

from device_client.commands import runs_compare, runs_list, runs_report, runs_rm
from device_client.commands.common_options import common_options
from device_client.console import Console
from device_client.settings import Settings

NAME = "runs"
HELP = "list tuning runs, compare them, show one as a page, remove them"
_ACTIONS = (runs_list, runs_compare, runs_report, runs_rm)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be done with runs; a folder alone lists them."""
    actions = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    for action in _ACTIONS:
        subparser = actions.add_parser(
            action.NAME, help=action.HELP, description=action.HELP, parents=[common_options()]
        )
        action.add_arguments(subparser)
        subparser.set_defaults(action=action)
    parser.set_defaults(default_word=runs_list.NAME)


def run(arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
    """Do it."""
    found: dict[str, Any] = arguments.action.run(arguments, console, settings)
    return found
