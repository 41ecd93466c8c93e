"""``zo-device``: finds the subcommand, runs it, and turns its outcome into one JSON object and an exit code.

Only the module of the command that is called is imported, and all of them for the help: none imports torch before it
runs.
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

COMMAND_MODULES = {
    "doctor": "doctor",
    "pull": "pull",
    "list": "list_bundles",
    "inspect": "inspect",
    "verify": "verify",
    "plan": "plan",
    "data": "data",
    "tune": "tune",
    "eval": "eval",
    "generate": "generate",
    "chat": "chat",
    "serve": "serve",
    "runs": "runs",
    "export": "export",
    "import": "import_bundle",
    "share": "share",
    "apply": "apply",
    "rm": "rm",
    "prune": "prune",
    "completion": "completion",
}
"""Command → its module in ``device_client.commands``, in the order that the help lists them."""


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
        arguments = build_parser(words).parse_args(words, argparse.Namespace(typed=shlex.join(["zo-device", *words])))
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


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of ``zo-device``.

    Args:
        words: A command line; where it names a command, the parser knows that one alone.
    """
    parser = program_parser(
        "zo-device",
        "Fetch a prepared language model and personalise it on this machine, with forward passes only.",
        parents=[common_options()],
    )
    parser.set_defaults(json=False, quiet=False, offline=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in load_commands(words):
        subparser = subparsers.add_parser(
            command.NAME, help=command.HELP, description=command.HELP, parents=[common_options()]
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def load_commands(words: Sequence[str] = ()) -> list[Command]:
    """Return the modules of the commands that a command line may mean, in the order they are listed."""
    named = next((word for word in words if not word.startswith("-")), None)  # no common option has a value
    modules = [COMMAND_MODULES[named]] if named in COMMAND_MODULES else COMMAND_MODULES.values()
    return [importlib.import_module(f"device_client.commands.{name}") for name in modules]


if __name__ == "__main__":
    sys.exit(main())
