"""The kernels for aarch64, run by an emulator, and those for x86-64 with AVX2 or AVX-512 make the same bits."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from kernel_outputs import kernels_in, outputs_of_library, outputs_on_arm

from device_client.model.backends.native.build import SOURCES, built_library

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with a CPU of the x86-64 kind")


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return outputs_on_arm(tmp_path_factory.mktemp("arm"))


def test_every_kernel_is_run(on_arm: dict[str, str]) -> None:
    """But those that only a matrix unit of the x86-64 kind has."""
    named = set(re.findall(r"^void (zo_\w+)\(", (SOURCES / "kernels.cpp").read_text(), re.MULTILINE))

    assert kernels_in(on_arm) == {name for name in named if not name.startswith("zo_panels_")}
    assert len(on_arm) == 178  # kernels, shapes, forms of weights and formats of values


@pytest.mark.parametrize("tuning", [None, "-march=x86-64-v3"], ids=["this machine", "AVX2"])
def test_every_output_is_the_same_to_the_last_bit(
    tuning: str | None, on_arm: dict[str, str], kernels: Path, tmp_path: Path
) -> None:
    library = built_library(kernels, lambda _: None, tuning=tuning)

    assert outputs_of_library(library, tmp_path) == on_arm


def test_a_cpu_that_rounds_products_differs_in_nothing_but_sums_of_products(
    on_arm: dict[str, str], kernels: Path, tmp_path: Path
) -> None:
    """Decoding, sensitive values, norms and the perturbation are the same on every CPU: tuning depends on them."""
    library = built_library(kernels, lambda _: None, tuning="-march=x86-64")

    found = outputs_of_library(library, tmp_path)

    other = {case: digest for case, digest in found.items() if on_arm[case] != digest}
    assert kernels_in(other) <= {"zo_linear_small", "zo_linear_side_by_side", "zo_attend", "zo_step"}
