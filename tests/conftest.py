"""Fixtures that several parts of the tests use: real data where it is present, and a tiny bundle made by hand."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_bundle import TinyBundle, make_tiny_bundle

from device_client.model.backends.native.build import built_library

if not torch.cuda.is_available():
    # Triton reads this when it is first imported, which transformers does: too late for the module that tests kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and every program that a test interrupts would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real models and texts; the test is skipped where it is absent."""
    folder = Path(os.environ.get("ZO_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data")).resolve()
    if not (folder / "models").is_dir():
        pytest.skip(f"real test data is not at {folder} (set ZO_DATA_DIR)")
    return folder


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the device's kernels for this machine; what else comes to lie in it does no harm."""
    folder = tmp_path_factory.mktemp("kernels")
    built_library(folder, lambda _: None)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The tiny bundle, made once; do not change its files."""
    return make_tiny_bundle(tmp_path_factory.mktemp("tiny-bundle"))
