"""A chat template is found wherever it lies, and never passed over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_tokenizers import write_json

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.chat_template_files import read_chat_template
from shared.errors import UnsupportedModel


def found_in(folder: Path, **config: Any) -> str | None:
    return read_chat_template(ContainedFolder(folder), config)


@pytest.mark.parametrize(
    "stated",
    [
        "{{ a }}",
        [{"name": "tool_use", "template": "{{ b }}"}, {"name": "default", "template": "{{ a }}"}],
        {"default": "{{ a }}", "rag": "{{ b }}"},
        [{"name": "chat", "template": "{{ a }}"}],
    ],
    ids=["text", "list", "object", "the only one"],
)
def test_text_and_the_default_of_named_templates_are_taken(tmp_path: Path, stated: object) -> None:
    assert found_in(tmp_path, chat_template=stated) == "{{ a }}"
    write_json(tmp_path / "chat_template.json", {"chat_template": stated})
    assert found_in(tmp_path) == "{{ a }}"


def test_a_file_of_its_own_comes_before_the_settings(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert found_in(tmp_path, chat_template="{{ settings }}") == "{{ file }}"


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "chat_template.json", {})
    assert found_in(tmp_path) is None
    assert found_in(tmp_path, chat_template=None) is None


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (7, "chat_template in tokenizer_config.json is int"),
        ([{"name": "default"}], "is NoneType"),
        (["{{ a }}"], "is a list without names"),
        ({"rag": "a", "tool_use": "b"}, "has the templates rag, tool_use\nNeeded: one called 'default'"),
        ("x" * 100_001, "has 100001 characters\nNeeded: at most 100000"),
    ],
)
def test_a_template_that_cannot_be_taken_is_refused(tmp_path: Path, stated: object, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        found_in(tmp_path, chat_template=stated)


def test_named_files_without_a_default_are_refused(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    with pytest.raises(UnsupportedModel, match="additional_chat_templates has the templates tool_use") as caught:
        found_in(tmp_path)
    assert "chat_template.jinja" in caught.value.next_step


def test_a_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UnsupportedModel, match=r"chat_template\.jinja is not UTF-8"):
        found_in(tmp_path)
