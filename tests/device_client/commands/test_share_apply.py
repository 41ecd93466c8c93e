"""A fine-tune is a small signed thing: shared here, applied there, onto the same bundle alone."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_bundle import make_case
from shared_run import TunedRuns
from simulated_server import sign_reference
from tiny_bundle import TinyBundle

from device_client.tuning.journal import read_journal
from device_client.tuning.run_directory import load_theta
from shared.bundle.layout import ImageLayout, manifest_descriptor
from shared.bundle.read import read_bundle

Shared = Callable[..., tuple[str, Path, str]]


@pytest.fixture(scope="module")
def runs(tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> TunedRuns:
    return TunedRuns(read_bundle(tiny_bundle.layout, tiny_bundle.digest), tmp_path_factory.mktemp("tuned"))


@pytest.fixture
def shared(command, store: ImageLayout, home: Path, tmp_path: Path, kernels: Path, runs: TunedRuns) -> Shared:
    """Tune and share; return the run's name, what was shared, and by which key."""
    (home / "backends").symlink_to(kernels)

    def make(content: str = "values", target: str = "shared", **changes: object) -> tuple[str, Path, str]:
        name = runs.put_into(home, **changes)
        outcome = command("share", name, str(tmp_path / target), "--as", content, "--yes")
        assert outcome.code == 0, outcome.told
        return name, tmp_path / target, outcome.result["signer"]

    return make


@pytest.fixture
def elsewhere(
    command, exported: ImageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Path
) -> Callable[[], Path]:
    """Move to another device that has the same bundle; return its home."""

    def move() -> Path:
        monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "other"))
        assert command("import", str(exported.root)).code == 0
        (tmp_path / "other" / "backends").symlink_to(kernels)
        return tmp_path / "other"

    return move


@pytest.mark.parametrize(
    "changes", [{}, {"method": "lora", "queries": 2, "directions": "one-sided"}, {"blocks": "upper:1", "lr": 1e-3}]
)
def test_a_journal_makes_the_very_bits_of_the_run_elsewhere(
    command, shared: Shared, elsewhere, home: Path, changes: dict[str, object]
) -> None:
    name, folder, key = shared("journal", **changes)
    theta = load_theta(home / "runs" / name)
    other = elsewhere()
    outcome = command("apply", str(folder), "--trusted-key", key)
    assert (outcome.code, outcome.result["as"], outcome.result["was_applied"]) == (0, "journal", False)
    applied = other / "runs" / outcome.result["run"]
    assert torch.equal(load_theta(applied), theta)
    found, records = read_journal(applied / "journal.bin")
    own, own_records = read_journal(home / "runs" / name / "journal.bin")
    assert repr(records) == repr(own_records)  # NaN is not equal to itself
    assert found.settings_digest != own.settings_digest  # which is computed from the rows


@pytest.mark.parametrize("changes", [{"gradient": "first-order"}, {"method": "prefix"}])
def test_values_are_the_runs_up_to_float16(
    command, shared: Shared, elsewhere, home: Path, changes: dict[str, object]
) -> None:
    name, folder, key = shared(**changes)
    theta = load_theta(home / "runs" / name)
    other = elsewhere()
    applied = other / "runs" / command("apply", str(folder), "--trusted-key", key).result["run"]
    # Half a unit in the last of float16's 11 bits, of differences and values below 2.
    torch.testing.assert_close(load_theta(applied), theta, rtol=2**-11, atol=2**-11 if changes else 2**-12)


def test_an_applied_run_is_listed_and_answers_as_the_run_did(command, shared: Shared, elsewhere, home: Path) -> None:
    name, folder, key = shared("journal", lr=1e-2)
    words = ("generate", "tiny", "good 1", "--max-new-tokens", "6", "--backend", "reference", "--run")
    answer = command(*words, name).result["text"]
    results = json.loads((home / "runs" / name / "result.json").read_text())["validation"]
    elsewhere()
    applied = command("apply", str(folder), "--trusted-key", key, "--name", "theirs").result["run"]
    (listed,) = command("runs").result["runs"]
    assert (listed["name"], listed["state"], listed["steps_done"]) == ("theirs", "applied", 12)
    assert listed["validation"]["best"] == results["best"]
    assert command(*words, applied).result["text"] == answer


def test_values_that_were_applied_can_be_shared_again(command, shared: Shared, tmp_path: Path) -> None:
    _, folder, _ = shared()
    applied = command("apply", str(folder), "--name", "theirs").result["run"]
    assert command("runs").result["runs"][-1]["steps_done"] == 12
    assert command("share", applied, str(tmp_path / "again"), "--yes").code == 0
    outcome = command("share", applied, str(tmp_path / "journal"), "--as", "journal", "--yes")
    assert (outcome.code, "without its journal" in outcome.result["error"]["found"]) == (2, True)


def test_an_unfinished_run_is_not_shared(command, store, runs: TunedRuns, home: Path, tmp_path: Path) -> None:
    name = runs.put_into(home, lr=1e-3)
    (home / "runs" / name / "result.json").unlink()
    outcome = command("share", name, str(tmp_path / "out"), "--yes")
    assert (outcome.code, "tune command again" in outcome.result["error"]["next_step"]) == (2, True)


def test_applying_twice_is_one_run(command, shared: Shared) -> None:
    _, folder, _ = shared()
    first, second = command("apply", str(folder)), command("apply", str(folder))
    assert (first.result["was_applied"], second.result["was_applied"]) == (False, True)
    assert first.result["run"] == second.result["run"]


def test_what_is_shared_of_a_run_says_nothing_of_single_rows(command, shared: Shared, home: Path) -> None:
    name, folder, _ = shared("journal")
    config = json.loads((home / "runs" / name / "config.json").read_text())
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for digest in (*config["rows"].values(), config["settings_digest"]):
        assert digest.encode() not in everything
    assert config["settings_digest"][7:15].encode() not in everything
    assert b"canary" not in everything
    assert b"good 1" not in everything


def test_the_person_hears_what_it_is_and_is_asked(
    command, store, runs: TunedRuns, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = runs.put_into(home)
    outcome = command("share", name, str(tmp_path / "out"))
    assert (outcome.code, outcome.result["error"]["param"]) == (2, "yes")
    assert "functions of the rows" in outcome.told
    assert "labels no, yes" in outcome.told or "labels yes, no" in outcome.told
    for answer, code in (("no\n", 1), ("", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Person(answer))
        assert command("share", name, str(tmp_path / "out")).code == code
        assert (tmp_path / "out").exists() == (code == 0)


class Person:
    """Somebody at a terminal."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self._answer


def test_the_key_is_made_once_for_its_owner_alone(command, shared: Shared, home: Path, tmp_path: Path) -> None:
    name, _, key = shared()
    path = home / "signing-key.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert command("share", name, str(tmp_path / "again"), "--yes").result["signer"] == key
    path.chmod(0o644)
    outcome = command("share", name, str(tmp_path / "third"), "--yes")
    assert (outcome.code, "chmod 600" in outcome.result["error"]["next_step"]) == (5, True)


def test_a_fine_tune_of_another_bundle_is_refused(
    command, shared: Shared, elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, key = shared()
    elsewhere()
    case = make_case(tmp_path / "stranger", "llama")
    layout = case.bundle.layout
    layout.tag("stranger:latest", manifest_descriptor(layout.read_blob(case.bundle.digest, max_bytes=1 << 20)))
    sign_reference(layout, "stranger:latest")
    assert command("import", str(layout.root), "stranger").code == 0
    named = command("apply", str(folder), "stranger", "--trusted-key", key)
    assert (named.code, named.result["error"]["type"]) == (11, "conflict")
    assert command("rm", "tiny").code == 0
    unnamed = command("apply", str(folder), "--trusted-key", key)
    assert (unnamed.code, unnamed.result["error"]["type"]) == (4, "not-found")
    assert not list((tmp_path / "other" / "runs").glob("*"))


def test_an_unknown_signer_is_refused_until_it_is_named_once(
    command, shared: Shared, elsewhere, tmp_path: Path
) -> None:
    _, folder, key = shared()
    elsewhere()
    outcome = command("apply", str(folder))
    assert (outcome.code, outcome.result["error"]["type"]) == (5, "signer-unknown")
    assert f"--trusted-key {key}" in outcome.result["error"]["next_step"]
    other_key = "ed25519:" + "0" * 64
    assert command("apply", str(folder), "--trusted-key", other_key).code == 5
    assert command("apply", str(folder), "--trusted-key", "nonsense").code == 2
    assert not (tmp_path / "other" / "runs").exists()
    assert command("apply", str(folder), "--trusted-key", key).code == 0
    assert command("apply", str(folder), "--name", "again").code == 0


def test_existing_things_are_never_overwritten(command, shared: Shared, home: Path, tmp_path: Path) -> None:
    name, folder, _ = shared()
    before = (home / "runs" / name / "config.json").read_bytes()
    assert command("apply", str(folder), "--name", name).code == 2
    assert (home / "runs" / name / "config.json").read_bytes() == before
    assert command("apply", str(folder), "--name", "../x").code == 2
    assert command("share", name, str(folder), "--yes").code == 2
    (tmp_path / "file.tar").write_bytes(b"mine")
    assert command("share", name, str(tmp_path / "file.tar"), "--yes").code == 2
    assert (tmp_path / "file.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("changes", [{"gradient": "first-order"}, {"method": "prefix"}])
def test_a_run_that_no_journal_makes_again_is_shared_as_values_alone(
    command, store, runs: TunedRuns, home: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    outcome = command("share", runs.put_into(home, **changes), str(tmp_path / "out"), "--as", "journal", "--yes")
    assert (outcome.code, "--as values" in outcome.result["error"]["next_step"]) == (2, True)


def test_values_that_the_journal_does_not_make_are_not_shared_as_one(
    command, store, runs: TunedRuns, home: Path, tmp_path: Path, kernels: Path
) -> None:
    (home / "backends").symlink_to(kernels)
    first, second = runs.put_into(home, lr=1e-3), runs.put_into(home, lr=2e-3)
    shutil.copyfile(home / "runs" / first / "best.safetensors", home / "runs" / second / "best.safetensors")
    outcome = command("share", second, str(tmp_path / "out"), "--as", "journal", "--yes")
    assert (outcome.code, outcome.result["error"]["type"]) == (11, "conflict")


def test_bundles_and_other_folders_are_no_fine_tunes(command, store: ImageLayout, tmp_path: Path) -> None:
    assert command("share", "tiny", str(tmp_path / "out"), "--yes").code == 2
    outcome = command("apply", str(store.root))
    assert (outcome.code, "zo-device import" in outcome.result["error"]["next_step"]) == (2, True)
    assert command("apply", str(tmp_path)).code == 4
    assert command("apply", str(tmp_path / "absent")).code == 4
