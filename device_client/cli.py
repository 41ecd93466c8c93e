"""``zo-device``: finds the subcommand, runs it, and turns its outcome into one JSON object and an exit code.

Importing all command modules costs a fraction of a second: none of them imports torch before it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from device_client.console import Console
from device_client.settings import Settings
from device_client.store import refusals
from shared.command_line import CommandParser, dropping_unread_output
from shared.errors import ZoError

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
)
EXIT_CODES = (
    (0, "done"),
    (1, "failed in a way no other code names"),
    (2, "wrong call"),
    (3, "key missing, unknown or without the right"),
    (4, "not found"),
    (5, "damaged, forged or too new: nothing was loaded"),
    (6, "network or server failed: try again, what was fetched is kept"),
    (7, "disk full, or a file or folder that may not be used"),
    (8, "memory or GPU does not suffice"),
    (9, "data file or row unusable"),
    (10, "training diverged"),
    (11, "begun otherwise, made from another bundle, or in use by another command"),
    (130, "interrupted: run the same command again"),
)
INTERRUPTED = 130


class Command(Protocol):
    """What a module in ``device_client.commands`` offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own arguments."""

    def run(self, arguments: argparse.Namespace, console: Console, settings: Settings) -> dict[str, Any]:
        """Do it and return the object that ``--json`` prints."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zo-device`` and return its exit code; it is 0 where nobody wants to read the rest of the output."""
    with dropping_unread_output():
        return _run(list(sys.argv[1:] if argv is None else argv))
    return 0


def _run(words: list[str]) -> int:
    settings = Settings.from_environment(os.environ)
    wants_json = "--json" in words
    console = Console(is_quiet="--quiet" in words, has_color=settings.has_color)
    try:
        arguments = build_parser().parse_args(words, argparse.Namespace(typed=shlex.join(["zo-device", *words])))
        settings = dataclasses.replace(settings, is_offline=arguments.offline)
        with refusals(settings):
            result = arguments.command.run(arguments, console, settings)
    except KeyboardInterrupt:
        error = ZoError("interrupted", next_step="run the same command again to go on")
        return _fail(error, "interrupted", INTERRUPTED, console, wants_json=wants_json)
    except BrokenPipeError:
        raise
    except ZoError as error:
        return _fail(error, error.slug, error.exit_code, console, wants_json=wants_json)
    except Exception as error:
        return _fail_unexpectedly(error, console, settings, wants_json=wants_json)
    if wants_json:
        _print_json(result)
    return int(result.get("exit_code", 0))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``zo-device`` with all its subcommands."""
    parser = CommandParser(
        prog="zo-device",
        description="Fetch a prepared language model and personalise it on this machine, with forward passes only.",
        epilog="exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_options()],
    )
    parser.set_defaults(json=False, quiet=False, offline=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in load_commands():
        subparser = subparsers.add_parser(
            command.NAME, help=command.HELP, description=command.HELP, parents=[_common_options()]
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def load_commands() -> list[Command]:
    """Return the command modules in the order they are listed."""
    return [importlib.import_module(f"device_client.commands.{name}") for name in COMMAND_MODULES]


def _common_options() -> CommandParser:
    """Return the options of every command; unset ones leave no attribute, so both places of an option count."""
    common = CommandParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    common.add_argument("--quiet", action="store_true", help="show only warnings and errors")
    common.add_argument("--offline", action="store_true", help="open no socket at all")
    return common


def _fail(error: ZoError, slug: str, exit_code: int, console: Console, *, wants_json: bool) -> int:
    console.error(str(error))
    if wants_json:
        described = {"found": error.found, "needed": error.needed, "next_step": error.next_step}
        with dropping_unread_output():
            _print_json({"error": {"type": slug, **described}})
    return exit_code


def _fail_unexpectedly(error: Exception, console: Console, settings: Settings, *, wants_json: bool) -> int:
    """Name the kind of an error nobody expected; its text may quote user data and is shown on request only."""
    if settings.is_debugging:
        console.error("".join(traceback.format_exception(error)))
    described = ZoError(f"unexpected {type(error).__name__}", next_step="set ZO_DEVICE_DEBUG=1 to see where")
    return _fail(described, "unexpected", 1, console, wants_json=wants_json)


def _print_json(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
