"""What the tests of whole runs share: the tiny bundle, rows, and a clock that ticks once per look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import TinyBundle
from tiny_run import write_rows

from shared.bundle.read import Bundle, read_bundle


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def clock() -> Callable[[], float]:
    ticks = iter(range(10_000))
    return lambda: float(next(ticks))


@pytest.fixture
def home(tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of zo-device for commands, with the tiny bundle in it."""
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    return tmp_path
