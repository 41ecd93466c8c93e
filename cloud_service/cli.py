"""The operator's command line: ``zo-cloud serve | prepare | plan | report | keys | signing-key | bundles | gc``.

Results go to standard output (with ``--json``: one JSON object), everything for people to standard error. The exit
status is the error's own (``shared.errors``); 130 means interrupted, and the same command goes on where it was.
Nothing heavy is imported before the command that needs it is known.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from cloud_service.commands.bundles import add_bundles_command
from cloud_service.commands.gc import add_gc_command
from cloud_service.commands.keys import add_keys_command
from cloud_service.commands.plan import add_plan_command
from cloud_service.commands.prepare import add_prepare_command
from cloud_service.commands.report import add_report_command
from cloud_service.commands.serve import add_serve_command
from cloud_service.commands.signing_key import add_signing_key_command
from shared.errors import Interrupted, InvalidRequest, ZoError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="zo-cloud",
        description="Prepare language models for fine-tuning on small devices.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong call, 3 no access, 4 not found, 5 damaged data, "
        "6 network, 7 disk, 8 memory, 9 data, 10 diverged, 11 begun otherwise or in use, "
        "130 interrupted (run it again to go on).",
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
    """Run a command and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ZoError as error:
        return _report(error, as_json=getattr(arguments, "json", False))
    except ValidationError as error:
        return _report(_invalid(error), as_json=getattr(arguments, "json", False))
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted", next_step="run the same command again to go on")
        return _report(stopped, as_json=getattr(arguments, "json", False))
    return 0


def _report(error: ZoError, *, as_json: bool) -> int:
    if as_json:
        fields = {"type": error.slug, "message": str(error), "param": error.param}
        print(json.dumps({"error": fields}))  # noqa: T201
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    return error.exit_code


def _invalid(error: ValidationError) -> InvalidRequest:
    """Name the first field that is wrong; the options and the fields have the same names."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return InvalidRequest(
        f"{field} = {first['input']!r}",
        needed=first["msg"].removeprefix("Value error, "),
        next_step="zo-cloud COMMAND --help lists the options",
        param=field,
    )


if __name__ == "__main__":
    sys.exit(main())
