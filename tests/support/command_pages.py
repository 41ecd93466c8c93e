"""Writes the reference pages of both command lines from their parsers: every command, every option, every exit code.

    python tests/support/command_pages.py        writes device_client/COMMANDS.md and cloud_service/COMMANDS.md

A test compares both files with what the parsers say.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from cloud_service.cli import build_parser as cloud_parser  # noqa: E402
from device_client.cli import build_parser as device_parser  # noqa: E402
from shared.command_line import EXIT_CODES  # noqa: E402

PAGES = {ROOT / "device_client" / "COMMANDS.md": device_parser, ROOT / "cloud_service" / "COMMANDS.md": cloud_parser}
_USUAL = ("positional arguments", "options")
"""Titles of groups that argparse makes by itself."""


def page(parser: argparse.ArgumentParser) -> str:
    """Return the reference of a program as Markdown."""
    lines = [f"# {parser.prog}", "", str(parser.description), ""]
    lines += ["Made from the parsers by `python tests/support/command_pages.py`; a test fails where it is not.", ""]
    common = [action for action in parser._actions if action.option_strings]
    lines += ["## Every command", "", *_table(common), ""]
    lines += ["| exit code | |", "|---|---|", *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES), ""]
    for command, described in _commands(parser):
        lines += list(_section(command, described, {name for action in common for name in action.option_strings}))
    return "\n".join(lines).rstrip() + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield the commands that do something, with their help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: str(choice.help) for choice in action._choices_actions}
            for name, command in action.choices.items():
                nested = list(_commands(command))
                yield from nested or [(command, helps.get(name, ""))]


def _section(command: argparse.ArgumentParser, described: str, common: set[str]) -> Iterator[str]:
    own = [action for action in command._actions if not common & set(action.option_strings)]
    words = [_placeholder(action) for action in own if not action.option_strings]
    words += ["[options]"] if any(action.option_strings for action in own) else []
    yield from (f"## {command.prog}", "", " ".join(["   ", command.prog, *words]), "")
    yield from (f"{described[:1].upper()}{described[1:]}.", "")
    groups = [(group.title, [action for action in group._group_actions if action in own])
              for group in command._action_groups]  # fmt: skip
    usual = [action for title, actions in groups if title in _USUAL for action in actions]
    for title, actions in [("", usual), *((title, actions) for title, actions in groups if title not in _USUAL)]:
        if actions:
            yield from (f"**{title}**", "") if title else ()
            yield from (*_table(actions), "")
    if command.epilog:
        yield from ("```", str(command.epilog).rstrip(), "```", "")


def _table(actions: list[argparse.Action]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for action in actions:
        names = ", ".join(action.option_strings)
        value = _placeholder(action) if action.nargs != 0 else ""
        needed = " (needed)" if action.option_strings and action.required else ""
        yield f"| `{_cell(f'{names} {value}'.strip())}`{needed} | {_cell(_help(action))} |"


def _placeholder(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        name = action.metavar
    elif action.choices is not None:
        name = "|".join(map(str, action.choices))
    else:
        name = (action.dest.upper() if action.option_strings else action.dest).replace("_", "-")
    return {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} [{name} …]"}.get(str(action.nargs), name)


def _help(action: argparse.Action) -> str:
    values = {"default": action.default, "prog": "", "dest": action.dest}
    return str(action.help or "") % values


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write both pages."""
    for path, build_parser in PAGES.items():
        path.write_text(page(build_parser()), encoding="utf-8")


if __name__ == "__main__":
    main()
