"""Options that fill the fields of a request: one table gives both the parser and the document.

    {"--sequences": ("calibration.sequences", {"type": int, "help": …})}     option → dotted field, argparse settings

The request's own rules check the values; an option that was not given fills nothing. Knows nothing about requests.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

OptionTable = Mapping[str, tuple[str, dict[str, Any]]]


def add_options(parser: argparse.ArgumentParser, table: OptionTable) -> None:
    """Add the options of a table; ``--help`` names their values after the options, not after the fields."""
    for option, (field, settings) in table.items():
        takes_no_word = "choices" in settings or "action" in settings
        metavar = {} if takes_no_word else {"metavar": option.lstrip("-").upper()}
        parser.add_argument(option, dest=field, default=None, **{**metavar, **settings})


def fill(document: dict[str, Any], table: OptionTable, arguments: argparse.Namespace) -> None:
    """Set the fields of ``document`` that options of the table were given for."""
    for field, _ in table.values():
        if (value := getattr(arguments, field)) is not None:
            *parents, name = field.split(".")
            target = document
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value
