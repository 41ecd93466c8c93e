"""Completion in a real bash: commands, options, choices, and the names of runs and bundles that are there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundle import TinyBundle
from written_run import write_run

from device_client.cli import main
from device_client.commands.completion import SHELLS, script

_COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function_name=$(complete -p zo-device | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function_name" zo-device "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def home(tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    write_run(tmp_path / "runs" / "holiday")
    program = tmp_path / "bin" / "zo-device"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m device_client.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "zo.bash").write_text(script("bash"))
    return tmp_path


def completed(home: Path, *words: str) -> set[str]:
    """Return what bash offers for the last word, which is not finished."""
    done = subprocess.run(
        ["bash", "--norc", "-c", _COMPLETE, "bash", str(home / "zo.bash"), "zo-device", *words],
        capture_output=True, text=True, timeout=60, check=True, cwd=home,
        env=os.environ | {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stderr == ""
    return {line for line in done.stdout.splitlines() if line}


def test_bash_completes_commands_options_choices_and_names(home: Path) -> None:
    assert completed(home, "pr") == {"prune"}
    assert completed(home, "runs", "re") == {"report"}
    assert completed(home, "tune", "--pause") == {"--pause-on"}
    assert completed(home, "tune", "--gradient", "fi") == {"first-order"}
    assert completed(home, "runs", "report", "ho") == {"holiday"}
    assert completed(home, "eval", "--run", "ho") == {"holiday"}
    assert completed(home, "verify", "ti") == {"tiny:latest"}
    (home / "rows.jsonl").write_text("")
    assert "rows.jsonl" in completed(home, "tune", "--data", "ro")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("zo-device", "prune", "compare", "pause-on"))


def test_names_are_printed_one_a_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "runs"]) == 0
    assert capsys.readouterr().out == "holiday\n"
    assert main(["completion", "bundles"]) == 0
    assert capsys.readouterr().out == "tiny:latest\n"
