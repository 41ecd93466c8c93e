"""A local name changes hands only on demand, and the next command that an error names can be typed as it stands."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated_server import KEY, OTHER_KEY, SimulatedServer, fingerprint, serving, sign_reference

from device_client.cli import main
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import Descriptor, parse_manifest

PUBLISHER, STRANGER = fingerprint(KEY), fingerprint(OTHER_KEY)


def command_in(next_step: str) -> list[str]:
    """The words of the command that a next step ends with, without the program's name."""
    program, *words = shlex.split(next_step[next_step.rindex("zo-device") :])
    assert program == "zo-device"
    return words


def spaced(layout: ImageLayout, manifest: Descriptor) -> Descriptor:
    """Another manifest of the same blobs: it differs in white space alone."""
    data = layout.blob_path(manifest.digest).read_bytes().replace(b'"layers":[', b'"layers": [', 1)
    assert parse_manifest(data)
    return layout.add_bytes(data, manifest.media_type)


@pytest.fixture
def others(exported: ImageLayout, tmp_path: Path) -> Iterator[str]:
    """A server where a stranger publishes another bundle, also as ``tiny:latest``."""
    shutil.copytree(exported.root, tmp_path / "strangers")
    layout = ImageLayout(tmp_path / "strangers")
    layout.tag("tiny:latest", spaced(layout, layout.resolve("tiny:latest")))
    sign_reference(layout, "tiny:latest", OTHER_KEY)
    with serving(SimulatedServer(layout)) as address:
        yield address


@pytest.mark.attack
def test_a_stranger_elsewhere_does_not_take_the_name_of_what_is_here(command, store: ImageLayout, others: str) -> None:
    before = store.references()
    outcome = command("pull", f"{others}/tiny")
    assert (outcome.code, outcome.result["error"]["type"]) == (11, "conflict")
    error = outcome.result["error"]
    for word in ("tiny:latest", PUBLISHER, STRANGER, f"{others}/tiny"):
        assert word in error["found"]
    assert "zo-device rm tiny:latest" in error["next_step"]
    assert store.references() == before
    assert command("verify", "tiny").result["publisher"] == PUBLISHER


def test_on_demand_the_name_changes_hands_and_nothing_is_lost(command, store: ImageLayout, others: str) -> None:
    before = store.references()["tiny:latest"]
    refused = command("pull", f"{others}/tiny").result["error"]
    outcome = command(*command_in(refused["next_step"]))
    assert (outcome.code, outcome.result["publisher"]) == (0, STRANGER)
    kept = f"tiny:{before.digest[:19].replace(':', '-')}"
    assert outcome.result["displaced"] == kept
    assert f"named another publisher's bundle until now, {before.digest}; that one stays here as {kept}" in outcome.told
    assert command("verify", "tiny").result["publisher"] == STRANGER
    assert command("prune").code == 0
    assert (command("verify", kept).code, command("verify", kept).result["publisher"]) == (0, PUBLISHER)


def test_after_it_was_removed_another_bundle_may_have_the_name(command, store: ImageLayout, others: str) -> None:
    assert command("rm", "tiny:latest").code == 0
    outcome = command("pull", f"{others}/tiny")
    assert (outcome.code, outcome.result["displaced"]) == (0, None)


def test_an_unsigned_bundle_does_not_take_the_name_of_a_signed_one(
    command, store: ImageLayout, tmp_path: Path, others: str
) -> None:
    layout = ImageLayout(tmp_path / "strangers")
    layout.update({name: None for name in layout.references() if name.endswith(".sig")})
    outcome = command("pull", f"{others}/tiny", "--allow-unsigned")
    assert (outcome.code, outcome.result["error"]["type"]) == (11, "conflict")
    assert "--trusted-key" not in outcome.told
    assert command("verify", "tiny").result["publisher"] == PUBLISHER


def test_the_same_publisher_may_bring_a_newer_bundle_from_another_server(
    command, store: ImageLayout, tmp_path: Path, others: str
) -> None:
    sign_reference(ImageLayout(tmp_path / "strangers"), "tiny:latest", KEY, version=2)
    outcome = command("pull", f"{others}/tiny")
    assert (outcome.code, outcome.result["publisher"], outcome.result["displaced"]) == (0, PUBLISHER, None)
    assert command("verify", "tiny").result["digest"] == outcome.result["digest"]


@pytest.mark.parametrize(
    "words", [["--server", "SERVER"], ["--retries", "0", "--connections", "2", "--server", "SERVER"]]
)
def test_the_next_command_of_a_changed_publisher_is_complete(
    home: Path, others: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    (home / "trusted_keys.json").write_text(json.dumps({f"{others}/tiny": PUBLISHER}))
    typed = ["pull", "tiny", *(others if word == "SERVER" else word for word in words), "--json"]
    assert main(typed) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "publisher-changed"
    again = command_in(error["next_step"])
    assert again == [*typed, "--trusted-key", STRANGER]
    assert main(again) == 0


def test_so_is_that_of_an_import(command, store: ImageLayout, exported: ImageLayout) -> None:
    sign_reference(exported, "tiny:latest", OTHER_KEY)
    refused = command("import", str(exported.root)).result["error"]
    assert command(*command_in(refused["next_step"])).code == 0


def test_so_is_that_of_a_missing_signature(command, home: Path, exported: ImageLayout) -> None:
    exported.update({name: None for name in exported.references() if name.endswith(".sig")})
    refused = command("import", str(exported.root)).result["error"]
    assert command(*command_in(refused["next_step"])).code == 0
