"""The operator's command line: ``zo-cloud serve | prepare | plan | report | keys | signing-key | bundles | gc``.

Its frame is ``shared.command_line``. Nothing heavy is imported before the command that needs it is known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cloud_service.commands.bundles import add_bundles_command
from cloud_service.commands.gc import add_gc_command
from cloud_service.commands.keys import add_keys_command
from cloud_service.commands.plan import add_plan_command
from cloud_service.commands.prepare import add_prepare_command
from cloud_service.commands.report import add_report_command
from cloud_service.commands.serve import add_serve_command
from cloud_service.commands.signing_key import add_signing_key_command
from shared.command_line import program_parser, run_program
from shared.terminal_text import printable


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = program_parser("zo-cloud", "Prepare language models for fine-tuning on small devices.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
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
    """Run ``zo-cloud`` and return its exit code."""
    return run_program(
        _run,
        list(sys.argv[1:] if argv is None else argv),
        show_error=_show_error,
        debug_variable="ZO_CLOUD_DEBUG",
        is_debugging=_is_debugging,
    )


def _run(words: Sequence[str]) -> int:
    arguments = build_parser().parse_args(words)
    from cloud_service.settings import use_sleeping_threads  # takes a tenth of a second that --help need not wait

    use_sleeping_threads()
    arguments.run(arguments)
    return 0


def _is_debugging() -> bool:
    from cloud_service.settings import is_debugging

    return is_debugging()


def _show_error(text: str) -> None:
    print(f"Error: {printable(text)}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
