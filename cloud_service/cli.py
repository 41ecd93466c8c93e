"""The operator's command line: ``zo-cloud serve | prepare | plan | report | keys | signing-key | bundles | gc``.

Results go to standard output (with ``--json``: one JSON object), everything for people to standard error. The exit
status is the error's own (``shared.errors``); 130 means interrupted, and the same command continues where it was. An
error that nobody expected shows its kind; with ``ZO_CLOUD_DEBUG=1`` also where it was raised.
Nothing heavy is imported before the command that needs it is known.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence

from cloud_service.commands.bundles import add_bundles_command
from cloud_service.commands.gc import add_gc_command
from cloud_service.commands.keys import add_keys_command
from cloud_service.commands.plan import add_plan_command
from cloud_service.commands.prepare import add_prepare_command
from cloud_service.commands.report import add_report_command
from cloud_service.commands.serve import add_serve_command
from cloud_service.commands.signing_key import add_signing_key_command
from shared.command_line import CommandParser, dropping_unread_output
from shared.durable_files import REFUSALS
from shared.errors import DiskError, Interrupted, ZoError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = CommandParser(
        prog="zo-cloud",
        description="Prepare language models for fine-tuning on small devices.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong call, 3 no access, 4 not found, 5 damaged data, "
        "6 network, 7 disk, 8 memory, 9 data, 10 diverged, 11 begun otherwise or in use, "
        "130 interrupted (run it again to continue).",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_serve_command(commands)
    add_prepare_command(commands)
    add_plan_command(commands)
    add_report_command(commands)
    add_keys_command(commands)
    add_signing_key_command(commands)
    add_bundles_command(commands)
    add_gc_command(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; it is 0 where nobody wants to read the rest of the output."""
    with dropping_unread_output():
        return _run(list(sys.argv[1:] if argv is None else argv))
    return 0


def _run(words: list[str]) -> int:
    try:
        arguments = build_parser().parse_args(words)
        arguments.run(arguments)
    except BrokenPipeError:
        raise
    except ZoError as error:
        return _report(error, error.slug, words)
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted", next_step="run the same command again to continue")
        return _report(stopped, stopped.slug, words)
    except Exception as error:
        from cloud_service.settings import is_debugging

        if is_debugging():
            traceback.print_exception(error)
        described = _describe(error)
        return _report(described, "unexpected" if type(described) is ZoError else described.slug, words)
    return 0


def _describe(error: Exception) -> ZoError:
    """Return an error that nobody expected as one of ours; its text may quote a token and is shown on request only."""
    if isinstance(error, OSError) and error.errno in REFUSALS and error.filename is not None:
        return DiskError(
            f"{error.filename}: {error.strerror}",
            needed="a file or folder that you may use",
            next_step="change its owner or permissions, or name another one",
        )
    return ZoError(f"unexpected {type(error).__name__}", next_step="set ZO_CLOUD_DEBUG=1 to see where")


def _report(error: ZoError, kind: str, words: Sequence[str]) -> int:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    if "--json" in words:
        described = {"found": error.found, "needed": error.needed, "next_step": error.next_step}
        fields = {"type": kind, "message": str(error), **described, "param": error.param}
        with dropping_unread_output():
            print(json.dumps({"error": fields}))  # noqa: T201
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
