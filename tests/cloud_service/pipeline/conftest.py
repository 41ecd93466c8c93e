"""Fixtures of the pipeline's tests: tiny checkpoints and texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint, write_text

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
