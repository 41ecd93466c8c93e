"""The options that every command has, in front of its name or behind it."""

from __future__ import annotations

import argparse

from shared.command_line import CommandParser


def common_options() -> CommandParser:
    """Return them as a parent parser; unset ones leave no attribute, so each place of an option counts."""
    common = CommandParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="print exactly one JSON object on stdout")
    common.add_argument("--quiet", action="store_true", help="show only warnings and errors")
    common.add_argument("--offline", action="store_true", help="open no socket at all")
    return common
