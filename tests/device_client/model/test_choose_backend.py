"""The fastest backend that works here computes, what was measured is kept, and a named one works or says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from device_client.model.backends.choose import BackendOptions, ChosenBackend, choose_backend
from device_client.model.backends.names import BackendName
from shared.bundle.config import QuantizedEntry
from shared.errors import ResourceError

CPU = torch.device("cpu")


@pytest.fixture
def entries(case_of: Callable) -> list[QuantizedEntry]:
    return list(case_of().bundle.config.tensors)


@pytest.fixture
def folder(kernels: Path, tmp_path: Path) -> Path:
    """A folder that holds compiled kernels and nothing else."""
    (tmp_path / "backends").mkdir()
    for library in kernels.glob("*.so"):
        shutil.copy(library, tmp_path / "backends")
    return tmp_path / "backends"


def choose(entries: list[QuantizedEntry], name: BackendName, folder: Path | None, told: list[str]) -> ChosenBackend:
    return choose_backend(BackendOptions(name, folder, told.append), entries, torch.float32, CPU)


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "calibrations.json").read_bytes())


def test_the_reference_asks_nothing_of_the_machine(entries: list[QuantizedEntry], tmp_path: Path) -> None:
    chosen = choose(entries, "reference", tmp_path, [])

    assert chosen.backend.name == "reference"
    assert chosen.fused_up_to_tokens == 0
    assert list(tmp_path.iterdir()) == []


def test_auto_measures_every_candidate_once_and_keeps_it(entries: list[QuantizedEntry], folder: Path) -> None:
    choose(entries, "auto", folder, [])
    measured = kept(folder)

    choose(entries, "auto", folder, [])

    assert sorted(key.split(",")[0] for key in measured) == ["native", "reference"]
    assert kept(folder) == measured


def test_a_compilation_is_announced(entries: list[QuantizedEntry], tmp_path: Path) -> None:
    told: list[str] = []

    choose(entries, "native", tmp_path / "not" / "there", told)

    assert len(told) == 1
    assert "compiling" in told[0]


@pytest.mark.parametrize(("native", "reference", "expected"), [(1.0, 2.0, "native"), (3.0, 2.0, "reference")])
def test_the_faster_decoder_computes_with_its_own_crossover(
    entries: list[QuantizedEntry], folder: Path, native: float, reference: float, expected: str
) -> None:
    choose(entries, "auto", folder, [])
    rates = {"native": (native, 4), "reference": (reference, 0)}
    changed = {
        key: dict(zip(("dequantize_seconds", "fused_up_to_tokens"), rates[key.split(",")[0]], strict=True))
        for key in kept(folder)
    }
    (folder / "calibrations.json").write_text(json.dumps(changed))

    chosen = choose(entries, "auto", folder, [])

    assert (chosen.backend.name, chosen.fused_up_to_tokens) == (expected, rates[expected][1])


@pytest.mark.parametrize(
    ("has_unit", "may_use_it", "expected"),
    [(True, True, "native"), (True, False, "reference"), (False, True, "reference")],
)
def test_a_matrix_unit_decides_in_bfloat16_whatever_was_measured(
    entries: list[QuantizedEntry],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_unit: bool,
    may_use_it: bool,
    expected: str,
) -> None:
    monkeypatch.setattr("device_client.model.backends.choose.has_matrix_unit", lambda: has_unit)
    options = BackendOptions("auto", folder, products=None if may_use_it else "library")
    choose_backend(options, entries, torch.bfloat16, CPU)
    slow_native = {
        key: fields | {"dequantize_seconds": 9.0 if key.startswith("native") else 1.0}
        for key, fields in kept(folder).items()
    }
    (folder / "calibrations.json").write_text(json.dumps(slow_native))

    assert choose_backend(options, entries, torch.bfloat16, CPU).backend.name == expected


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'"text"', b'{"native": {"dequantize_seconds": "fast"}}', b"\xff"]
)
def test_a_damaged_record_is_measured_anew(entries: list[QuantizedEntry], folder: Path, content: bytes) -> None:
    (folder / "calibrations.json").write_bytes(content)

    choose(entries, "auto", folder, [])

    assert sorted(key.split(",")[0] for key in kept(folder)) == ["native", "reference"]


def test_without_a_compiler_auto_says_so_and_takes_the_reference(
    entries: list[QuantizedEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    told: list[str] = []

    assert choose(entries, "auto", tmp_path, told).backend.name == "reference"
    assert "no C++ compiler" in told[0]


def test_a_named_backend_that_does_not_work_here_is_refused(
    entries: list[QuantizedEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ResourceError, match=r"backend 'native' cannot be used: no C\+\+ compiler") as caught:
        choose(entries, "native", tmp_path, [])

    assert caught.value.next_step == "--backend auto"
    assert "native, reference" in str(caught.value.needed)


def test_the_native_backend_needs_a_folder(entries: list[QuantizedEntry]) -> None:
    with pytest.raises(ResourceError, match="no folder"):
        choose(entries, "native", None, [])


def test_a_library_that_cannot_be_loaded_counts_as_unavailable(
    entries: list[QuantizedEntry], kernels: Path, tmp_path: Path
) -> None:
    for library in kernels.glob("*.so"):
        (tmp_path / library.name).write_bytes(b"not a library")
    told: list[str] = []

    assert choose(entries, "auto", tmp_path, told).backend.name == "reference"
    assert len(told) == 1


def test_kernels_that_are_gone_are_noticed_although_their_speed_is_kept(
    entries: list[QuantizedEntry], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(entries, "auto", folder, [])
    for library in folder.glob("*.so"):
        library.unlink()
    monkeypatch.setenv("PATH", "")
    told: list[str] = []

    assert choose(entries, "auto", folder, told).backend.name == "reference"
    assert "no C++ compiler" in told[0]
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler"):
        choose(entries, "native", folder, [])


def test_what_cannot_be_kept_is_said_and_measured_again(entries: list[QuantizedEntry], folder: Path) -> None:
    (folder / "calibrations.json").mkdir()
    told: list[str] = []

    assert choose(entries, "auto", folder, told).backend.name in ("native", "reference")
    assert "cannot be kept" in told[0]
