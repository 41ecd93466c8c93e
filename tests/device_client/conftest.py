"""The CPU kernels, compiled once for all tests of a run, and random bundles, made once per family, form and options."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_bundle import Case, make_case

from device_client.model.backends.native.build import built_library
from device_client.model.backends.native.library import KernelLibrary

TUNINGS = [None, "-march=x86-64-v3", "-march=x86-64"] if platform.machine() == "x86_64" else [None]
"""This machine's own, what a CPU with AVX2 but without AVX-512 would compile, and one without either."""


@pytest.fixture(scope="session", params=TUNINGS, ids=lambda tuning: tuning or "native")
def library(kernels: Path, request: pytest.FixtureRequest) -> KernelLibrary:
    """The kernels themselves, for each kind of CPU that this one can be taken for."""
    return KernelLibrary(built_library(kernels, lambda _: None, tuning=request.param))


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Make (or return again) the case of a family and storage form."""
    made: dict[str, Case] = {}

    def get(model_type: str = "llama", form: str = "per_row", **options: Any) -> Case:
        key = repr((model_type, form, sorted(options.items())))
        if key not in made:
            made[key] = make_case(tmp_path_factory.mktemp(f"{model_type}-{form}"), model_type, form, **options)
        return made[key]

    return get
