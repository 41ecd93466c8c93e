"""``zo-device``: finds the subcommand, runs it, and turns its outcome into one JSON object and an exit code.

Importing all command modules costs a fraction of a second: none of them imports torch before it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from device_client.commands.common_options import common_options
from device_client.console import Console
from device_client.settings import Settings
from device_client.store import refusals
from shared.command_line import print_json, program_parser, run_program

COMMAND_MODULES = (
    "doctor",
    "pull",
    "list_bundles",
    "inspect",
    "verify",
    "plan",
    "data",
    "tune",
    "eval",
    "generate",
    "runs",
    "export",
    "import_bundle",
    "rm",
    "prune",
    "completion",
)


class Command(Protocol):
    """What a module in ``device_client.commands`` offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
        """Do it and return the object that ``--json`` prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zo-device`` and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    settings = Settings.from_environment(os.environ)
    console = Console(is_quiet="--quiet" in words, has_color=settings.has_color)

    def run(words: Sequence[str]) -> int:
        arguments = build_parser().parse_args(words, argparse.Namespace(typed=shlex.join(["zo-device", *words])))
        effective = dataclasses.replace(settings, is_offline=arguments.offline)
        with refusals(effective):
            result = arguments.command.run(arguments, console, effective)
        if arguments.json:
            print_json(result)
        return int(result.get("exit_code", 0))

    return run_program(
        run,
        words,
        show_error=console.error,
        debug_variable="ZO_DEVICE_DEBUG",
        is_debugging=lambda: settings.is_debugging,
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``zo-device`` with all its subcommands."""
    parser = program_parser(
        "zo-device",
        "Fetch a prepared language model and personalise it on this machine, with forward passes only.",
        parents=[common_options()],
    )
    parser.set_defaults(json=False, quiet=False, offline=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in load_commands():
        subparser = subparsers.add_parser(
            command.NAME, help=command.HELP, description=command.HELP, parents=[common_options()]
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def load_commands() -> list[Command]:
    """Return the command modules in the order they are listed."""
    return [importlib.import_module(f"device_client.commands.{name}") for name in COMMAND_MODULES]


if __name__ == "__main__":
    sys.exit(main())
