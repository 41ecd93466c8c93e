"""What a request may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_service.jobs.admission import check_model, check_request, check_text
from shared.api import PrepareRequest
from shared.errors import InvalidModelId, InvalidRequest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    (root / "tiny").mkdir(parents=True)
    (root / "text.txt").write_text("text")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside.txt").write_text("text")
    (root / "link").symlink_to(tmp_path / "outside")
    return root


@pytest.mark.parametrize("model", ["gpt2", "meta-llama/Llama-2-7b-hf", "a/b.c_d-e", "Qwen/Qwen2.5-0.5B"])
def test_a_hub_id_is_allowed(model: str) -> None:
    check_model(model, [])


@pytest.mark.parametrize(
    "model",
    [
        "../secret", "a/../b", "..", "https://example.org/model", "http:example", "file:///etc/passwd", "hf://a/b",
        "a/b/c", "a//b", "/etc", "a b", "a/b?x", "-a/b", "a/.b", "user@host/b", "a\x00b", "a/b.git", "x" * 97, ".",
    ],
)  # fmt: skip
def test_anything_else_is_refused_naming_the_model(model: str, root: Path) -> None:
    with pytest.raises(InvalidModelId) as caught:
        check_model(model, [root])
    assert caught.value.param == "model"


def test_a_folder_is_allowed_under_a_root_only(root: Path, tmp_path: Path) -> None:
    check_model(str(root / "tiny"), [root])
    check_model("tiny", [root])
    for outside in (tmp_path / "outside", root / "link", root / "absent", root):
        with pytest.raises(InvalidModelId):
            check_model(str(outside), [root])
    with pytest.raises(InvalidModelId):
        check_model(str(root / "tiny"), [])


def test_a_text_is_c4_or_lies_under_a_root(root: Path, tmp_path: Path) -> None:
    check_text("c4", [], "calibration.text")
    check_text(str(root / "text.txt"), [root], "calibration.text")
    check_text("text.txt", [root], "calibration.text")
    for text in (str(tmp_path / "outside.txt"), "wikitext", "../outside.txt", "http://example.org/c4", "/etc/passwd"):
        with pytest.raises(InvalidRequest) as caught:
            check_text(text, [root], "evaluation.text")
        assert caught.value.param == "evaluation.text"


def test_both_texts_of_a_request_are_checked() -> None:
    for field in ("calibration", "evaluation"):
        request = PrepareRequest.model_validate({"model": "gpt2", field: {"text": "/etc/passwd"}})
        with pytest.raises(InvalidRequest) as caught:
            check_request(request, model_roots=[], text_roots=[])
        assert caught.value.param == f"{field}.text"
