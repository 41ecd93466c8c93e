"""The frame of ``zo-device``: help, exit codes, one JSON object, people on stderr."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from device_client.cli import COMMAND_MODULES, build_parser, load_commands, main
from device_client.settings import Settings
from shared import errors
from shared.command_line import EXIT_CODES


def test_help_names_every_command_and_exit_code_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom device_client.cli import main\n"
        "try: main(['--help'])\nfinally: print([m for m in ('torch', 'transformers', 'httpx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, imported = done.stdout.strip().splitlines()
    assert imported == "[]"
    for name in ("doctor", "pull", "list", "inspect", "verify", "export", "import", "rm", "prune"):
        assert any(line.split()[:1] == [name] for line in lines)
    for number, meaning in EXIT_CODES:
        assert any(line.split(maxsplit=1) == [str(number), meaning] for line in lines)


def test_every_error_of_the_tree_has_a_documented_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ZoError)]
    assert {kind.exit_code for kind in kinds} <= {number for number, _ in EXIT_CODES}
    assert len(kinds) > 30


def test_every_command_documents_itself_and_takes_the_common_options_on_both_sides() -> None:
    parser = build_parser()
    for command in load_commands():
        assert command.HELP
        assert command.__doc__
    before = parser.parse_args(["--json", "--quiet", "--offline", "list"])
    after = parser.parse_args(["list", "--json", "--quiet", "--offline"])
    neither = parser.parse_args(["list"])
    assert [(a.json, a.quiet, a.offline) for a in (before, after, neither)] == [(True,) * 3, (True,) * 3, (False,) * 3]


@pytest.mark.parametrize("words", [[], ["unknown"], ["list", "--unknown"], ["rm"], ["pull", "--connections", "x"]])
def test_a_wrong_call_exits_2_as_json_too(home: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "invalid-request"
    assert set(error) == {"type", "found", "needed", "next_step", "param"}
    assert "--help" in captured.err


@pytest.mark.parametrize(
    "words",
    [
        ["pull", "x", "--connections", "0"],
        ["pull", "x", "--max-rate", "fast"],
        ["pull", "http://h/x", "--retries", "-1"],
    ],
)
def test_an_option_out_of_range_exits_2(command, words: list[str]) -> None:
    assert command(*words).code == 2


def test_without_json_stdout_stays_empty(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No bundle" in captured.err


def test_quiet_says_nothing_but_errors(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["verify", "--quiet"]) == 4
    assert "no bundle" in capsys.readouterr().err


def test_an_unexpected_error_shows_its_kind_but_not_its_text(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text might quote a row of somebody's data; a folder where a file should be stands for the unexpected."""
    (home / "trusted_keys.json").mkdir(parents=True)
    words = ["pull", "http://127.0.0.1:9/tiny", "--json"]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["found"] == "unexpected IsADirectoryError"
    assert "trusted_keys.json" not in captured.err
    monkeypatch.setenv("ZO_DEVICE_DEBUG", "1")
    assert main(words) == 1
    assert "Traceback" in capsys.readouterr().err


def test_settings_come_from_the_environment_and_empty_means_unset() -> None:
    settings = Settings.from_environment(
        {"ZO_DEVICE_HOME": "/data/zo", "ZO_DEVICE_SERVER": "", "ZO_DEVICE_API_KEY": "zo_secret", "NO_COLOR": "1"}
    )
    assert settings.home == Path("/data/zo")
    assert settings.server is None
    assert not settings.has_color
    assert "zo_secret" not in repr(settings)
    assert Settings.from_environment({}).home == Path.home() / ".local/share/zo-device"
    assert settings.runs == Path("/data/zo/runs")
    assert settings.store.root == Path("/data/zo/bundles")


def test_a_key_file_that_holds_no_key_is_a_wrong_call(command, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("two words\n")
    assert command("pull", "http://127.0.0.1:9/tiny", "--api-key-file", str(tmp_path / "key")).code == 2
    assert command("pull", "http://127.0.0.1:9/tiny", "--api-key-file", str(tmp_path / "absent")).code == 2


def test_offline_forbids_the_remote_list(command) -> None:
    assert command("list", "--remote", "--server", "http://127.0.0.1:9", "--offline").code == 6


def test_arguments_of_commands_show_in_their_help() -> None:
    parser = build_parser()
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    shown = action.choices["pull"].format_help()
    for option in ("REF", "--trusted-key", "--allow-unsigned", "--connections", "--max-rate", "--offline"):
        assert option in shown


def test_options_may_stand_between_a_commands_words() -> None:
    words = ["generate", "smollm2", "--system", "Be brief.", "Who are you?", "--max-new-tokens", "5"]

    arguments = build_parser(words).parse_args(words)

    assert (arguments.ref, arguments.prompt, arguments.max_new_tokens) == ("smollm2", "Who are you?", 5)


def test_commands_are_listed_by_the_names_that_they_have() -> None:
    assert [command.NAME for command in load_commands()] == list(COMMAND_MODULES)
    assert [command.NAME for command in load_commands(["--json", "list", "pull"])] == ["list"]
