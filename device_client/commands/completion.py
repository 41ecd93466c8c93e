"""``zo-device completion``: what a shell needs to complete commands, options, files, runs and bundles.

The script is made of the parsers by shtab, so it knows every command and option there is. Names of runs and bundles
change, so the script asks this command for them; that takes a third of a second, since nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device_client.console import Console
from device_client.settings import Settings
from device_client.store import bundle_references
from shared.errors import NotFound

NAME = "completion"
HELP = "print a shell's completion script: completion bash|zsh|fish"
SHELLS = ("bash", "zsh", "fish")
NAMES = ("runs", "bundles")
HOW_TO = """\
bash   source <(zo-device completion bash)                       in ~/.bashrc
zsh    zo-device completion zsh > "${fpath[1]}/_zo-device"        once
fish   zo-device completion fish > ~/.config/fish/completions/zo-device.fish        once
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is printed, and show where it belongs."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HOW_TO
    parser.add_argument(
        "what", choices=(*SHELLS, *NAMES),
        help="a shell: its script; runs or bundles: their names, which the scripts ask for",
    )  # fmt: skip


def run(arguments: argparse.Namespace, _console: Console, settings: Settings) -> dict[str, Any]:
    """Print the script, or names one a line.

    Raises:
        NotFound: shtab is not installed.
    """
    if arguments.what in NAMES:
        names = list(_run_names(settings) if arguments.what == "runs" else bundle_references(settings.store))
        text, result = "".join(f"{name}\n" for name in names), dict[str, Any](names=names)
    else:
        text = script(arguments.what)
        result = dict[str, Any](shell=arguments.what, script=text)
    if not arguments.json:
        sys.stdout.write(text)
    return result


def script(shell: str) -> str:
    """Return a shell's completion script.

    Raises:
        NotFound: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise NotFound(
            "the package shtab is not installed",
            needed="it, to make completion scripts",
            next_step="pip install 'zo-device[device]'",
        ) from error
    from device_client.cli import build_parser

    parser = build_parser()
    names = {name: shtab.cmd(f"zo-device completion {name} 2>/dev/null") for name in NAMES}
    for action in _actions(parser):
        metavar = str(action.metavar or "")
        if metavar.startswith("RUN"):
            complete = names["runs"]
        elif metavar in ("REF", "BUNDLE"):
            complete = names["bundles"]
        elif action.type is Path:
            complete = shtab.DIRECTORY if metavar in ("DIR", "FOLDER") else shtab.FILE
        else:
            continue
        action.complete = complete  # type: ignore[attr-defined]  # where shtab looks
    return str(shtab.complete(parser, shell=shell))


def _run_names(settings: Settings) -> Iterator[str]:
    for config in sorted(settings.runs.glob("*/config.json")):
        yield config.parent.name


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of all its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _actions(command)
