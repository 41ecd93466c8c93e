"""z is drawn by the compiled kernels where there are any, by NumPy elsewhere, and nobody can tell which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from device_client.model.backends.choose import REFERENCE, BackendOptions
from device_client.model.backends.native import library as kernel_library
from device_client.model.backends.native.build import BuildFailed
from device_client.model.backends.native.library import KernelLibrary
from device_client.tuning.perturbations import Drawing, PerturbationStream, drawing_of
from shared.perturbation import Distribution, perturbation

positions = st.integers(0, 2**64 - 1)


def drawn(draw: Drawing, seed: int, step: int, query: int, count: int) -> bytes:
    z = torch.full((count + 1,), 7.0)
    draw(seed, step, query, z[:count])
    assert z[count] == 7.0
    return z[:count].numpy().tobytes()


@settings(deadline=None)
@given(seed=positions, step=positions, query=positions, count=st.integers(0, 100) | st.integers(4000, 4100))
def test_the_kernels_draw_the_bytes_of_the_stream(
    library: KernelLibrary, seed: int, step: int, query: int, count: int
) -> None:
    expected = perturbation(seed, step, query, count).tobytes()
    assert drawn(library.draw_normal, seed, step, query, count) == expected


def test_the_kernels_draw_a_million_values_alike(library: KernelLibrary) -> None:
    assert drawn(library.draw_normal, 5, 6, 7, 1_000_003) == perturbation(5, 6, 7, 1_000_003).tobytes()


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("name", ["reference", "auto", "native", "triton"])
def test_every_backend_gets_the_same_perturbations(kernels: Path, distribution: Distribution, name: str) -> None:
    draw = drawing_of(distribution, BackendOptions(name, kernels))  # type: ignore[arg-type]
    assert drawn(draw, 1, 2, 3, 65) == perturbation(1, 2, 3, 65, distribution).tobytes()


def test_the_kernels_draw_unless_plain_torch_is_wanted(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(KernelLibrary, "draw_normal", lambda *_: used.append("kernels"))

    drawing_of("gaussian", BackendOptions("auto", kernels))(1, 2, 3, torch.empty(4))
    assert used == ["kernels"]
    drawing_of("gaussian", REFERENCE)(1, 2, 3, torch.empty(4))
    drawing_of("rademacher", BackendOptions("auto", kernels))(1, 2, 3, torch.empty(4))
    assert used == ["kernels"]


def test_without_a_compiler_numpy_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Path:
        raise BuildFailed("no C++ compiler")

    monkeypatch.setattr(kernel_library, "built_library", fail)
    draw = drawing_of("gaussian", BackendOptions("auto", tmp_path))
    assert drawn(draw, 1, 2, 3, 33) == perturbation(1, 2, 3, 33).tobytes()


def test_drawing_ahead_changes_no_perturbation(kernels: Path) -> None:
    draw = drawing_of("gaussian", BackendOptions("auto", kernels))
    stream = PerturbationStream(5, 100, draw, torch.device("cpu"))
    for step, query in [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (2, 0), (2, 0)]:
        assert stream(step, query).numpy().tobytes() == perturbation(5, step, query, 100).tobytes()
