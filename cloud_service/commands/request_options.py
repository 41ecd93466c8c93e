"""Options that fill the fields of a request: one table gives both the parser and the document.

    {"--sequences": ("calibration.sequences", {"type": int, "help": …})}     option → dotted field, argparse settings

The request's own rules check the values; an option that was not given fills nothing. What they refuse is named by its
option, as whoever typed it knows it. Knows nothing about single requests.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

OptionTable = Mapping[str, tuple[str, dict[str, Any]]]
RequestType = TypeVar("RequestType", bound="BaseModel")


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


def checked_request(
    model: type[RequestType], document: dict[str, Any], table: OptionTable, arguments: argparse.Namespace
) -> RequestType:
    """Return the request that a filled document holds.

    Raises:
        InvalidRequest: A value is refused; the message names its option, ``param`` its field.
    """
    from pydantic import ValidationError

    from shared.errors import InvalidRequest
    from shared.field_errors import first_fault

    try:
        return model.model_validate(document)
    except ValidationError as error:
        fault = first_fault(error)
        given = {option: field for option, (field, _) in table.items() if getattr(arguments, field) is not None}
        at_fault = next((option for option, field in given.items() if _is_of(fault.field, field)), None)
        together = " with ".join(option for option, field in given.items() if field.startswith(f"{fault.field}."))
        found = f"{at_fault} {fault.found}" if at_fault else together or fault.found_in(fault.field)
        command = " ".join(word for word in (arguments.command, getattr(arguments, "report", None)) if word)
        raise InvalidRequest(
            found, needed=fault.needed, next_step=f"zo-cloud {command} --help lists the options", param=fault.field
        ) from error


def _is_of(fault: str, field: str) -> bool:
    """Whether a fault is in the field of an option, also where that field is filled in several parts of a request."""
    return f".{fault}".endswith(f".{field}") or fault.startswith(f"{field}.")
