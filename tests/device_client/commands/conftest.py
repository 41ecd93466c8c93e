"""Commands run in this process, as ``zo-device`` runs them, against a home of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from simulated_server import sign_reference
from tiny_bundle import TinyBundle

from device_client.cli import main
from shared.bundle.layout import ImageLayout


class Outcome(NamedTuple):
    code: int
    result: dict[str, Any]
    told: str


RunCommand = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("ZO_DEVICE_SERVER", "ZO_DEVICE_API_KEY", "ZO_DEVICE_TRUSTED_KEY", "ZO_DEVICE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


@pytest.fixture
def command(home: Path, capsys: pytest.CaptureFixture[str]) -> RunCommand:
    """Run a command with ``--json`` and return its exit code, its one object and what people were told."""

    def run(*words: str) -> Outcome:
        code = main(["--json", *words])
        captured = capsys.readouterr()
        return Outcome(code, json.loads(captured.out), captured.err)

    return run


@pytest.fixture
def exported(tiny_bundle: TinyBundle, tmp_path: Path) -> ImageLayout:
    """A folder as a publisher would hand it over: the tiny bundle and its signature."""
    shutil.copytree(tiny_bundle.layout.root, tmp_path / "stick")
    layout = ImageLayout(tmp_path / "stick")
    sign_reference(layout, "tiny:latest")
    return layout


@pytest.fixture
def store(home: Path, command: RunCommand, exported: ImageLayout) -> ImageLayout:
    """A home that holds the tiny bundle."""
    assert command("import", str(exported.root)).code == 0
    return ImageLayout(home / "bundles")
