"""Fixtures of the cloud's tests: tiny checkpoints and texts, and a shelf on which nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shelf import Shelf, copy_blobs, make_shelf
from tiny_checkpoint import build_checkpoint, write_text

from shared.bundle.manifest import Descriptor

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny matrices are slower on many threads, and sums then depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Return a function that writes a checkpoint under the test's folder."""

    def make(family: str = "llama", name: str = "Tiny_Model", **changes: Any) -> Path:
        return build_checkpoint(tmp_path / "models" / name, family, **changes)

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A calibration text of 60 short documents."""
    return write_text(tmp_path / "text.jsonl")


@pytest.fixture
def shelf(tmp_path: Path, tiny_bundle: Any) -> Iterator[Shelf]:
    """A shelf on which nothing is published."""
    copy_blobs(tiny_bundle.layout, tmp_path)
    made = make_shelf(tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def manifest(tiny_bundle: Any) -> Descriptor:
    """The tiny bundle's manifest."""
    descriptor: Descriptor = tiny_bundle.layout.resolve(tiny_bundle.reference)
    return descriptor.model_copy(update={"annotations": None})
