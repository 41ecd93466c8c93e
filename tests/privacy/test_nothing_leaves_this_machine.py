"""Every command but ``pull`` works without a network and asks for none; a person's rows stay in the person's files.

The rows hold a canary: a word that occurs nowhere else. Afterwards it is looked for in every file that the commands
made anywhere, and in everything they printed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from persons_day import TRACED_ELSEWHERE, commands, prepare
from tiny_bundle import TinyBundle
from traced_commands import CANARY, Traced, files_with, trace

from device_client.cli import COMMAND_MODULES

SHOWN_TO_PEOPLE = {"data"}
"""Commands whose purpose is to show rows to who typed them."""

MADE_OF_ROWS = {"run/answers.json": "keep this file private", "run/report.html": "This page holds rows"}
"""Files whose purpose is to show some rows with their answers, and what each of them says of that itself."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: TinyBundle) -> Path:
    return prepare(tmp_path_factory.mktemp("person"), tiny_bundle)


@pytest.fixture(scope="module")
def traced(folder: Path) -> dict[str, Traced]:
    return trace(commands(folder), folder, typed=f"Hi {CANARY}\n")


def test_every_command_is_traced_here_or_elsewhere(folder: Path) -> None:
    assert {words[0] for words in commands(folder).values()} | TRACED_ELSEWHERE == set(COMMAND_MODULES)


def test_the_trace_finds_what_it_looks_for(traced: dict[str, Traced]) -> None:
    """The one command that may use a network fails without one, and its attempt is in the trace."""
    assert traced["pull"].exit_code == 6
    assert any("connect(" in call for call in traced["pull"].network_calls)


def test_no_command_needs_a_network_or_asks_for_one(traced: dict[str, Traced]) -> None:
    others = {name: outcome for name, outcome in traced.items() if name != "pull"}
    assert {name: outcome.said for name, outcome in others.items() if outcome.exit_code != 0} == {}
    assert {name: outcome.network_calls for name, outcome in others.items() if outcome.network_calls} == {}


def test_the_canary_is_in_the_persons_own_files_alone(traced: dict[str, Traced], folder: Path) -> None:
    assert traced
    assert files_with(CANARY, folder) == sorted(map(Path, ("question.json", "rows.jsonl", *MADE_OF_ROWS)))
    for name, warning in MADE_OF_ROWS.items():
        assert warning in (folder / name).read_text()
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_no_command_prints_what_it_read_but_the_one_that_shows_rows(traced: dict[str, Traced]) -> None:
    printing = {name for name, outcome in traced.items() if CANARY in outcome.said}
    assert printing <= SHOWN_TO_PEOPLE
    assert "data" in printing  # else the canary would not be looked for where it can be
