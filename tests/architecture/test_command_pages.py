"""The reference pages of both command lines say what the parsers say, and leave nothing out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_pages import PAGES, page


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Yield every option and argument of a program's commands, with the command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options(command)
        else:
            yield parser.prog, action


@pytest.mark.parametrize(("path", "build_parser"), PAGES.items(), ids=lambda value: getattr(value, "__module__", ""))
def test_the_page_is_what_the_parsers_say(path: Path, build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    assert path.read_text(encoding="utf-8") == page(build_parser()), "next: python tests/support/command_pages.py"


@pytest.mark.parametrize("build_parser", PAGES.values(), ids=lambda value: value.__module__)
def test_every_option_says_what_it_does(build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    silent = [
        f"{prog} {action.option_strings or action.dest}" for prog, action in options(build_parser()) if not action.help
    ]
    assert silent == []


@pytest.mark.parametrize("build_parser", PAGES.values(), ids=lambda value: value.__module__)
def test_the_page_has_every_option_of_every_command(build_parser: Callable[[], argparse.ArgumentParser]) -> None:
    parser = build_parser()
    sections = {text.partition("\n")[0]: text for text in page(parser).split("\n## ")}
    common = {name for action in parser._actions for name in action.option_strings}
    for prog, action in options(parser):
        for name in set(action.option_strings) - common:
            assert f"`{name}" in sections[prog] or f" {name}" in sections[prog], (prog, name)
