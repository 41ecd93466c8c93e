"""Bundles whose bytes are all genuine and signed, but whose content is wrong: refused, and nothing visible."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from simulated_server import SimulatedServer, sign_reference
from tiny_bundle import TinyBundle

from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import SENSITIVE_TITLE, parse_manifest
from shared.bundle.read import read_config
from shared.bundle.write import add_manifest, add_tensors
from shared.errors import IndicesDuplicated, IndicesOutOfRange, IndicesUnsorted, IntegrityError, ValuesNotFinite

TENSOR = "model.layers.0.self_attn.q_proj.weight"
Damage = Callable[[dict[str, np.ndarray]], None]


def republish(tiny: TinyBundle, root: Path, damage: Damage) -> ImageLayout:
    """Return a copy of the tiny bundle whose sensitive tensors were changed before it was published and signed."""
    shutil.copytree(tiny.layout.root, root)
    layout = ImageLayout(root)
    manifest = parse_manifest(layout.read_blob(tiny.digest, max_bytes=1 << 20))
    config = read_config(layout, manifest)
    sensitive = manifest.layer(SENSITIVE_TITLE)
    tensors = safetensors.numpy.load_file(layout.blob_path(sensitive.digest))
    damage(tensors)
    layers = [
        add_tensors(layout, SENSITIVE_TITLE, tensors) if layer.title == SENSITIVE_TITLE else layer
        for layer in manifest.layers
    ]
    layout.tag("tiny:latest", add_manifest(layout, config, layers))
    sign_reference(layout, "tiny:latest")
    return layout


def duplicated(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{TENSOR}.indices"][1] = tensors[f"{TENSOR}.indices"][0]


def out_of_range(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{TENSOR}.indices"][-1] = 32 * 32


def negative(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{TENSOR}.indices"][0] = -1


def unsorted(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{TENSOR}.indices"][:2] = tensors[f"{TENSOR}.indices"][:2][::-1].copy()


def not_finite(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{TENSOR}.values"][0] = np.nan


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (duplicated, IndicesDuplicated),
        (out_of_range, IndicesOutOfRange),
        (negative, IndicesOutOfRange),
        (unsorted, IndicesUnsorted),
        (not_finite, ValuesNotFinite),
    ],
)
def test_a_signed_bundle_with_wrong_content_is_refused_with_its_own_error(
    tiny_bundle: TinyBundle,
    tmp_path: Path,
    device,
    server: SimulatedServer,
    damage: Damage,
    error: type[IntegrityError],
) -> None:
    server.layout = republish(tiny_bundle, tmp_path / "wrong", damage)
    with pytest.raises(error):
        device.pull()
    assert device.is_empty()
    assert error.exit_code == 5
