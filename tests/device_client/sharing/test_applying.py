"""What a trusted signer has signed may still not fit its bundle: it is refused, and no run appears."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fine_tunes import SETTINGS, document
from safetensors.torch import save
from tiny_bundle import TinyBundle

from device_client.model.backends.choose import REFERENCE
from device_client.planning.methods import tuned_part
from device_client.sharing.applying import apply_fine_tune
from device_client.sharing.artifact import SharedFineTune
from device_client.sharing.values import pack_values, unpack_values
from device_client.tuning.engines import journal_header
from device_client.tuning.replay import starting_values
from shared.bundle.read import Bundle, read_bundle
from shared.errors import IntegrityError, TensorMismatch, UnsupportedModel, UpgradeNeeded, ValuesNotFinite

COUNT = 2 * 7 * 8
"""Values of the tiny bundle: eight in each weight of two blocks."""


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest)


def fine_tune(bundle: Bundle, folder: Path, layer: bytes, **changes: Any) -> SharedFineTune:
    (folder / "layer").write_bytes(layer)
    fields = {"bundle": bundle.digest, "value_count": COUNT} | changes
    return SharedFineTune(document(**fields), "sha256:" + "3" * 64, "ed25519:" + "4" * 64, folder / "layer")


def half(count: int = COUNT, value: float = 0.125) -> bytes:
    return save({"theta": torch.full((count,), value).half()})


def test_values_are_added_to_the_bundles_own(bundle: Bundle, tmp_path: Path) -> None:
    part = tuned_part(bundle.config)
    (tmp_path / "layer").write_bytes(half())
    own = starting_values(bundle, part, seed=0)
    assert torch.equal(unpack_values(tmp_path / "layer", bundle, part), own + 0.125)
    (tmp_path / "layer").write_bytes(pack_values(own + 0.125, bundle, part))
    assert torch.equal(unpack_values(tmp_path / "layer", bundle, part), own + 0.125)


def test_a_difference_beyond_float16_is_not_shared_as_values(bundle: Bundle) -> None:
    part = tuned_part(bundle.config)
    with pytest.raises(UnsupportedModel, match="--as journal"):
        pack_values(torch.full((COUNT,), 1e6), bundle, part)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (half(COUNT - 1), TensorMismatch),
        (half(value=float("inf")), ValuesNotFinite),
        (save({"other": torch.zeros(COUNT).half()}), TensorMismatch),
        (save({"theta": torch.zeros(COUNT // 2, 2).half()}), TensorMismatch),
        (b"", IntegrityError),
    ],
)
def test_other_tensors_than_the_values_are_refused(
    bundle: Bundle, tmp_path: Path, content: bytes, error: type[IntegrityError]
) -> None:
    with pytest.raises(error):
        apply_fine_tune(fine_tune(bundle, tmp_path, content), bundle, tmp_path / "runs" / "x", REFERENCE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"value_count": COUNT + 1},
        {"settings": SETTINGS | {"blocks": "upper:99"}},
        {"settings": SETTINGS | {"step_length": 0.5}},
        {"settings": SETTINGS | {"method": "prefix", "blocks": "upper:1"}},
        {"settings": SETTINGS | {"directions": "one-sided"}},
        {"rendering": {"template": "no places"}},
        {"rendering": {"template": "{text} {label}"}},
        {"rendering": {"task": "SST-2"}},
    ],
)
def test_settings_that_contradict_themselves_or_the_bundle_are_refused(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any]
) -> None:
    shared = fine_tune(bundle, tmp_path, half(), **changes)
    with pytest.raises(IntegrityError):
        apply_fine_tune(shared, bundle, tmp_path / "runs" / "x", REFERENCE)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({"settings_digest": "sha256:" + "5" * 64}, IntegrityError),
        ({"bundle_digest": "sha256:" + "5" * 64}, IntegrityError),
        ({"seed": 7}, IntegrityError),
        ({"stream": "philox-of-a-later-version"}, UpgradeNeeded),
        ({}, IntegrityError),  # no steps in it
    ],
)
def test_a_journal_of_something_else_is_refused(
    bundle: Bundle, tmp_path: Path, found: dict[str, Any], error: type[Exception]
) -> None:
    shared = fine_tune(bundle, tmp_path, b"", content="journal")
    header = journal_header(
        shared.document.settings.as_settings(),
        tuned_part(bundle.config),
        bundle.digest,
        shared.document.settings_digest,
    )
    (tmp_path / "layer").write_bytes(dataclasses.replace(header, **found).to_bytes())
    with pytest.raises(error):
        apply_fine_tune(shared, bundle, tmp_path / "runs" / "x", REFERENCE)
    assert not (tmp_path / "runs").exists()
