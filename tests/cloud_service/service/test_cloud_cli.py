"""The operator's command line."""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_service.cli import build_parser, main
from cloud_service.commands.prepare import request_of
from cloud_service.storage.database import open_database
from cloud_service.storage.keys import KeyStore, Scope
from shared.api import PrepareRequest


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud_service.cli", *arguments], capture_output=True, text=True, timeout=60
    )


def test_help_runs_and_names_the_commands() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    for command in ("serve", "prepare", "keys", "bundles", "gc"):
        assert command in answer.stdout


@pytest.mark.parametrize("command", [["serve"], ["prepare"], ["keys"], ["keys", "create"]])
def test_each_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: zo-cloud" in capsys.readouterr().out


def test_the_command_line_and_the_application_import_no_torch() -> None:
    code = "import sys, cloud_service.cli, cloud_service.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_keys_are_created_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> dict[str, object]:
        assert main(["keys", *arguments, "--data", str(tmp_path), "--json"]) == 0
        answer: dict[str, object] = json.loads(capsys.readouterr().out)
        return answer

    rights = ["--scope", "jobs", "--scope", "bundles", "--publishes", "team/*", "--publishes", "demo"]
    made = call("create", "--name", "laptop", *rights)
    assert made["scopes"] == ["jobs", "bundles"]
    assert made["publishes"] == ["team/*", "demo"]
    with contextlib.closing(_Engine(tmp_path)) as opened:
        assert opened.keys.authenticate(str(made["key"])).scopes == (Scope.JOBS, Scope.BUNDLES)
    (listed,) = call("list")["keys"]  # type: ignore[misc]
    assert listed["id"] == made["id"]
    assert "key" not in listed
    assert call("revoke", str(made["id"]))["revoked"] is not None


@pytest.mark.parametrize(
    "options",
    [
        ["--scope", "jobs"],
        ["--scope", "bundles", "--publishes", "team/*"],
        ["--scope", "admin", "--scope", "jobs", "--publishes", "*"],
        ["--scope", "jobs", "--publishes", "Team/*"],
        ["--scope", "jobs", "--publishes", ""],
    ],
)
def test_a_jobs_key_says_which_names_it_publishes_and_others_do_not(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", *options, "--data", str(tmp_path), "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["param"] == "publishes"
    assert "team/*" in captured.err


class _Engine:
    def __init__(self, data: Path) -> None:
        self._engine = open_database(data / "jobs.sqlite3")
        self.keys = KeyStore(self._engine)

    def close(self) -> None:
        self._engine.dispose()


def test_revoking_an_unknown_key_exits_with_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(_Engine(tmp_path)):
        assert main(["keys", "revoke", "nobody", "--data", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no key 'nobody'" in captured.err
    assert "Next: zo-cloud keys list" in captured.err


BESIDE_A_SERVICE = [
    "keys list", "keys create --scope admin", "keys revoke some", "gc", "gc --dry-run",
    "bundles list", "bundles retag n:t --back", "bundles delete n:t", "bundles history n:t", "bundles audit",
    "signing-key show", "signing-key rotate", "signing-key rotate --lost --yes-every-device-must-be-told",
]  # fmt: skip


@pytest.mark.parametrize("words", BESIDE_A_SERVICE)
def test_only_serve_makes_a_data_folder(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    somebodys = tmp_path / "somebodys"
    somebodys.mkdir()
    (somebodys / "letter.txt").touch()
    for folder in (tmp_path / "mistyped", somebodys):
        assert main([*words.split(), "--data", str(folder)]) == 4
        told = capsys.readouterr()
        assert told.out == ""
        assert str(folder) in told.err
        assert "\nNeeded: " in told.err
        assert "\nNext: zo-cloud " in told.err
        assert "--data FOLDER" in told.err
    assert [path.name for path in tmp_path.rglob("*")] == ["somebodys", "letter.txt"]


def test_a_key_with_few_rights_made_before_the_first_start_leaves_the_first_start_its_admin_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "--scope", "bundles", "--data", str(tmp_path)]) == 0
    capsys.readouterr()
    with contextlib.closing(_Engine(tmp_path)) as opened:
        first = opened.keys.create_first()
        assert first is not None
        assert opened.keys.authenticate(first).scopes == (Scope.ADMIN,)
        assert opened.keys.create_first() is None


def test_serving_in_public_without_tls_exits_with_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--host", "0.0.0.0"], ["--host", "10.0.0.1", "--no-auth"]):  # noqa: S104
        assert main(["serve", *options, "--data", str(tmp_path / "data")]) == 2
        assert "Error: --" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_serving_a_root_that_is_not_there_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--data", str(tmp_path / "data"), "--model-root", str(tmp_path / "nope"), "--port", "0"]
    assert main(words) == 2
    assert f"Error: --model-root {tmp_path / 'nope'}, which is not there\nNeeded: " in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_every_option_of_prepare_lands_in_its_field() -> None:
    line = """prepare gpt2 --output out --revision main --name n --tag t --sparsity 0.01 --scope global
        --mask-source random --quantizer uniform --bits 8 --group-size 128 --compensation gptq --calibration-text a.txt
        --sequences 4 --tokens 32 --seed 7 --evaluation-text b.txt --evaluation-documents 3"""
    assert request_of(build_parser().parse_args(line.split())) == PrepareRequest.model_validate(
        {
            "model": "gpt2",
            "revision": "main",
            "name": "n",
            "tag": "t",
            "sparsity": 0.01,
            "scope": "global",
            "mask_source": "random",
            "quantizer": {"method": "uniform", "bits": 8, "group_size": 128, "compensation": "gptq"},
            "calibration": {"text": "a.txt", "sequences": 4, "tokens_per_sequence": 32, "seed": 7},
            "evaluation": {"text": "b.txt", "documents": 3},
        }
    )
    assert request_of(build_parser().parse_args(["prepare", "gpt2", "--output", "o"])) == PrepareRequest(model="gpt2")


@pytest.mark.parametrize("sparsity", ["0", "2"])
def test_an_impossible_sparsity_is_a_wrong_call(
    sparsity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--output", str(tmp_path / "out"), "--sparsity", sparsity, "--json"]
    assert main(["prepare", "gpt2", *options]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["param"] == "sparsity"
    needed = "a number above 0.0" if sparsity == "0" else "a number that is at most 0.5"
    assert f"Error: --sparsity {float(sparsity)}\nNeeded: {needed}\nNext: zo-cloud prepare --help" in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "found", "needed"),
    [
        ("--name Upper", '--name "Upper"', "lower-case letters and digits"),
        ("--calibration-task SST-2", "--calibration-task", "the folder that holds the folder SST-2"),
        ("--calibration-task MNLI", '--calibration-task "MNLI"', "one of 'SST-2', 'RTE'"),
        ("--evaluation-documents -1", "--evaluation-documents -1", "a number that is at least 0"),
        ("--tokens 3", "--tokens 3", "a number that is at least 8"),
    ],
)
def test_a_refused_value_is_named_by_its_option(
    words: str, found: str, needed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "gpt2", "--output", str(tmp_path / "out"), *words.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"Error: {found}")
    assert needed in told
    assert "Value error" not in told
    assert "Next: zo-cloud prepare --help lists the options" in told


def test_what_a_killed_preparation_left_is_removed_at_the_start_of_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".writing-abc"
    left.mkdir()
    (left / "block-00000.safetensors").write_bytes(b"half")
    assert main(["prepare", "no/such/model", "--output", str(tmp_path), "--quiet"]) == 2
    assert not left.exists()


def test_two_preparations_never_share_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / ".workspace.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["prepare", "gpt2", "--output", str(tmp_path)]) == 11
    assert "another zo-cloud prepare works in" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "3651"])
def test_a_lifetime_of_statements_out_of_range_is_refused_before_anything_is_made(
    days: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "org/model", "--output", str(tmp_path / "out"), "--expires-days", days, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["param"] == "expires-days"
    assert not (tmp_path / "out").exists()
