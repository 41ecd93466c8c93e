"""The CPU kernels, compiled once for all tests of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_client.model.backends.native.build import built_library


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kernels for this machine; what else comes to lie in it does no harm."""
    folder = tmp_path_factory.mktemp("kernels")
    built_library(folder, lambda _: None)
    return folder
