"""Shared fine-tunes made by hand, of a bundle that may not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save

from device_client.sharing.artifact import write_fine_tune
from device_client.sharing.documents import FineTune
from shared.bundle.manifest import MANIFEST_MEDIA_TYPE, Descriptor

KEY, OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32), Ed25519PrivateKey.from_private_bytes(b"b" * 32)
BUNDLE = "sha256:" + "1" * 64
SETTINGS: dict[str, Any] = {
    "method": "sparse", "gradient": "zeroth-order", "steps": 12, "batch_size": 4, "epsilon": 1e-3, "lr": 1e-3,
    "decay": "linear", "clip_multiple": 5.0, "queries": 1, "directions": "two-sided", "distribution": "gaussian",
    "seed": 0, "objective": "candidates", "validate_every": 4, "blocks": "all",
}  # fmt: skip
FIELDS: dict[str, Any] = {
    "content": "values", "name": "mine", "bundle": BUNDLE, "source_model": "tests/tiny", "best_step": 8,
    "value_count": 4, "settings": SETTINGS, "settings_digest": "sha256:" + "2" * 64,
    "rendering": {"template": "{text} is {label}", "label_words": [["a", "b"]]}, "control_tokens": "text",
    "row_counts": {"training": 9}, "stopped_by": "steps", "steps_done": 12,
    "validation": {"bundle": {"loss": 1.5, "rows": 3}, "best": {"loss": 1.0, "rows": 3}},
}  # fmt: skip
VALUES = save({"theta": torch.tensor([0.5, -0.25, 0.0, 2.0]).half()})


def document(**changes: Any) -> FineTune:
    return FineTune.model_validate(FIELDS | changes)


def written(
    folder: Path, *, content: bytes = VALUES, key: Ed25519PrivateKey = KEY, subject: str = BUNDLE, **changes: Any
) -> Path:
    """Write a fine-tune and return its folder."""
    folder.mkdir()
    bundle = Descriptor(media_type=MANIFEST_MEDIA_TYPE, digest=subject, size=100)
    write_fine_tune(folder, document(**changes), content, bundle, key)
    return folder
