"""Each port names the next step in its own way: commands at the command line, routes over HTTP."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloud_service
from shared import errors

ROOT = Path(cloud_service.__file__).parent
HTTP_ALONE = ("routes", "jobs")
"""What only who sends requests gets to see; an option in there is the operator's, and the text says so."""

ROUTE = re.compile(r"\b(GET|POST|DELETE) /")
COMMAND = re.compile(r"\bzo-cloud \w|(?<!\w)--[a-z]|ZO_CLOUD_")


def next_steps(keyword: str) -> Iterator[tuple[str, str]]:
    """The constant words of all next steps in the service's sources, with their place."""
    for path in sorted(ROOT.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            for argument in getattr(call, "keywords", ()):
                if argument.arg == keyword:
                    parts = (node.value for node in ast.walk(argument.value) if isinstance(node, ast.Constant))
                    yield path.relative_to(ROOT).as_posix(), "".join(part for part in parts if isinstance(part, str))


def test_no_next_step_of_the_command_line_is_a_route() -> None:
    typed = [(place, text) for place, text in next_steps("next_step") if not place.startswith(HTTP_ALONE)]
    assert len(typed) > 30
    assert [(place, text) for place, text in typed if ROUTE.search(text)] == []


def test_what_a_request_is_answered_calls_commands_the_operators() -> None:
    answered = [*next_steps("next_request")]
    answered += [(place, text) for place, text in next_steps("next_step") if place.startswith(HTTP_ALONE)]
    assert len(answered) > 15
    assert [(place, text) for place, text in answered if COMMAND.search(text) and "operator" not in text] == []


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ZoError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not errors.ZoError])
def test_an_error_without_a_next_step_has_that_of_its_kind(kind: type[errors.ZoError]) -> None:
    assert kind("found").next_step
    assert kind("found").http_text == str(kind("found")) == f"found\nNext: {kind.usual_next_step}"
    own = kind("found", next_step="type this", next_request="GET /this")
    assert (str(own), own.http_text) == ("found\nNext: type this", "found\nNext: GET /this")
