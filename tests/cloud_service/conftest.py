"""A shelf that has the tiny bundle's blobs, none of them published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shelf import Shelf, copy_blobs, make_shelf

from shared.bundle.manifest import Descriptor


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
