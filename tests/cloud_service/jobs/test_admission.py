"""What a request may name; the rules themselves are tested with ``sources``."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_service.jobs.admission import check_request
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.errors import InvalidModelId, InvalidRequest


def policy(root: Path, *hub_namespaces: str) -> SourcePolicy:
    return SourcePolicy((root,), (root,), hub_namespaces=hub_namespaces)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "tiny").mkdir(parents=True)
    (root / "text.txt").write_text("text")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside.txt").write_text("text")
    return root


def test_a_hub_id_and_what_lies_under_the_roots_are_allowed(root: Path) -> None:
    for model in ("hub:Qwen/Qwen2.5-0.5B", "tiny", str(root / "tiny")):
        request = PrepareRequest.model_validate({"model": model, "calibration": {"text": str(root / "text.txt")}})
        check_request(request, policy(root))


@pytest.mark.attack
def test_a_hub_id_without_its_prefix_needs_its_namespace_allowed(root: Path) -> None:
    request = PrepareRequest(model="Qwen/Qwen2.5-0.5B")
    check_request(request, policy(root, "Qwen/*"))
    with pytest.raises(InvalidModelId, match="there is no folder"):
        check_request(request, policy(root, "meta-llama/*"))


@pytest.mark.parametrize("model", ["../outside", "https://example.org/model", "x" * 300])
def test_any_other_model_is_refused_naming_the_field(model: str, root: Path) -> None:
    with pytest.raises(InvalidModelId) as caught:
        check_request(PrepareRequest(model=model), policy(root))
    assert caught.value.param == "model"


def test_task_rows_lie_under_a_text_root(root: Path, tmp_path: Path) -> None:
    for place in (root, tmp_path / "outside"):
        (place / "SST-2").mkdir()
        (place / "SST-2" / "train.tsv").write_text("sentence\tlabel\n")

    def check(text: str) -> None:
        request = PrepareRequest.model_validate({"model": "tiny", "calibration": {"text": text, "task": "SST-2"}})
        check_request(request, policy(root))

    check("SST-2")
    check(str(root / "SST-2" / "train.tsv"))
    with pytest.raises(InvalidRequest) as caught:
        check("../outside")
    assert caught.value.param == "calibration.text"


@pytest.mark.parametrize("field", ["calibration", "evaluation"])
@pytest.mark.parametrize("text", ["../outside.txt", "/etc/passwd", "wikitext", "x" * 300])
def test_any_other_text_is_refused_naming_the_field(field: str, text: str, root: Path) -> None:
    request = PrepareRequest.model_validate({"model": "tiny", field: {"text": text}})
    with pytest.raises(InvalidRequest) as caught:
        check_request(request, policy(root))
    assert caught.value.param == f"{field}.text"
