"""Model folders that their makers use against the service: refused with a reason, before anything is published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.model.tokenization import load_encoder
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.opening.identity import ResolvedInput, resolve
from cloud_service.pipeline.publish.documents import add_documents, license_of
from cloud_service.progress import SilentProgress
from cloud_service.sources import SourcePolicy
from shared.api import PrepareRequest
from shared.bundle.layout import ImageLayout
from shared.errors import DataError, UnsupportedModel

MakeCheckpoint = Callable[..., Path]
pytestmark = pytest.mark.attack


def resolve_model(folder: Path, text: Path) -> ResolvedInput:
    request = PrepareRequest.model_validate({"model": str(folder), "calibration": {"text": str(text)}})
    return resolve(NamedInput.of_preparation(request), SourcePolicy(allow_any_local=True), SilentProgress())


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "signing-key.pem"
    path.write_text("the key")
    return path


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
def test_a_link_to_the_signing_key_is_refused_when_the_model_is_resolved(
    make_checkpoint: MakeCheckpoint, text: Path, key: Path, name: str
) -> None:
    folder = make_checkpoint()
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(key)
    with pytest.raises(UnsupportedModel, match=f"{name} is a link out of the model folder"):
        resolve_model(folder, text)


def test_a_link_that_appears_after_the_model_was_resolved_is_not_published(
    make_checkpoint: MakeCheckpoint, key: Path, tmp_path: Path
) -> None:
    folder = make_checkpoint()
    (folder / "LICENSE").symlink_to(key)
    layout = ImageLayout.create(tmp_path / "store")
    with pytest.raises(UnsupportedModel, match="LICENSE is a link out of the model folder"):
        add_documents(layout, folder, tokenizer_json=b"{}", report={}, model_card="")
    assert not any(path.read_bytes() == b"the key" for path in (tmp_path / "store").rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "LICENSE", "tokenizer.json"])
def test_a_pipe_never_blocks(make_checkpoint: MakeCheckpoint, text: Path, name: str) -> None:
    folder = make_checkpoint()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UnsupportedModel, match=f"{name} is a named pipe"):
        resolve_model(folder, text)


def test_a_card_without_an_end_is_refused(make_checkpoint: MakeCheckpoint, text: Path) -> None:
    folder = make_checkpoint()
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to("/dev/zero")
    for read in (lambda: resolve_model(folder, text), lambda: license_of(folder)):
        with pytest.raises(UnsupportedModel, match=r"README\.md is a link out of the model folder"):
            read()


@pytest.mark.parametrize(("name", "size"), [("README.md", 4 << 20), ("LICENSE", 4 << 20), ("config.json", 64 << 20)])
def test_a_file_of_holes_is_refused_by_its_length(
    make_checkpoint: MakeCheckpoint, text: Path, name: str, size: int
) -> None:
    folder = make_checkpoint()
    with (folder / name).open("wb") as file:
        file.truncate(size + 1)
    with pytest.raises(UnsupportedModel, match=f"{name}: {size + 1} bytes\nNeeded: at most {size} bytes"):
        resolve_model(folder, text)


def test_a_shard_that_is_a_folder_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "shard.safetensors").mkdir()
    index = {"weight_map": {"model.norm.weight": "shard.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match=r"shard\.safetensors is a folder"):
        read_outline(folder)


@pytest.mark.attack
def test_a_header_that_states_gigabytes_is_refused_before_it_is_read(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").write_bytes((33 * 2**20).to_bytes(8, "little") + b"{}")
    with pytest.raises(UnsupportedModel, match="states a header of 34603008 bytes"):
        read_outline(folder)


def test_a_shard_outside_the_folder_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder, other = make_checkpoint(), make_checkpoint(name="other")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors is a link out of the model folder"):
        read_outline(folder)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("config.json", r'{"model_type": "llama", "hidden_act": "\ud800"}'),
        ("tokenizer.json", r'{"added_tokens": [{"id": 1, "content": "\uDFFF"}]}'),
        ("tokenizer_config.json", r'{"bos_token": "\ud800"}'),
        ("tokenizer_config.json", r'{"chat_template": "{{ x }}\ud83d"}'),
        ("special_tokens_map.json", r'{"bos_token": {"content": "\udc00\ud800"}}'),
        ("generation_config.json", r'{"\ud800": 1}'),
    ],
)
def test_half_of_a_surrogate_pair_in_any_json_is_refused_by_the_files_name(
    make_checkpoint: MakeCheckpoint, name: str, document: str
) -> None:
    folder = make_checkpoint()
    architecture = read_outline(folder).architecture
    (folder / name).write_text(document)
    with pytest.raises(UnsupportedModel, match=f"{name}: a string holds half of a surrogate pair"):
        load_encoder(folder, read_outline(folder).architecture if name == "config.json" else architecture, 64)


def test_a_text_that_became_a_link_is_refused(make_checkpoint: MakeCheckpoint, text: Path, key: Path) -> None:
    from cloud_service.pipeline.calibration.documents import open_text

    resolved = text.resolve()
    text.unlink()
    text.symlink_to("/etc/passwd")
    with pytest.raises(DataError, match=r"text\.jsonl is a link out of the folder of texts"), open_text(resolved):
        pass
