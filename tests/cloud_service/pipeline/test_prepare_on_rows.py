"""A bundle whose mask comes from task rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import build_checkpoint, write_text

from cloud_service.pipeline.opening.planned_model import Means
from cloud_service.pipeline.prepare import prepare
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.bundle.config import BundleConfig
from shared.bundle.layout import ImageLayout
from shared.bundle.read import read_bundle
from shared.errors import DataError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve prompts with completions."""
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{number} is", "completion": " even"[number % 2 :]} for number in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(tmp_path: Path, place: str, calibration: dict[str, object]) -> BundleConfig:
    build_checkpoint(tmp_path / "Tiny")
    request = PrepareRequest.model_validate(
        {"model": str(tmp_path / "Tiny"), "sparsity": 0.01, "calibration": calibration, "evaluation": {"documents": 0}}
    )
    layout = ImageLayout.create(tmp_path / place / "store")
    made = prepare(
        request,
        workspace=tmp_path / place / "work",
        layout=layout,
        progress=SilentProgress(),
        sources=SourcePolicy(allow_any_local=True),
        means=Means(device="cpu"),
    )
    return read_bundle(layout, made.manifest.digest).config


def test_the_bundle_says_which_rows_chose_its_mask(tmp_path: Path, rows: Path) -> None:
    mask = config_of(tmp_path, "rows", {"text": str(rows), "task": "rows", "sequences": 10}).mask
    assert (mask.calibration_text, mask.calibration_sequences) == ("rows.jsonl", 10)
    text = {"text": str(write_text(tmp_path / "text.jsonl")), "sequences": 10, "tokens_per_sequence": 24}
    assert config_of(tmp_path, "text", text).mask.gradient_mass != mask.gradient_mass


def test_fewer_rows_than_sequences_are_refused_before_the_fisher_pass(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(DataError, match="12 rows"):
        config_of(tmp_path, "rows", {"text": str(rows), "task": "rows", "sequences": 13})
