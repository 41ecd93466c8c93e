"""Finds a model's chat template, wherever its makers have put it.

    chat_template.jinja                      the default template
    tokenizer_config.json, "chat_template"   text, or named templates as a list or an object
    chat_template.json, "chat_template"      the same, as processors of texts and images save it
    additional_chat_templates/NAME.jinja     named templates beside the default, for tools and the like

The first place that has one wins, as in transformers. Of named templates the one called ``default`` is taken, or the
only one. A template that is there and cannot be taken is refused, never passed over. Costs a read of small files.
Knows nothing about what a template says.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from cloud_service.contained_folder import MAX_DOCUMENT_BYTES, ContainedFolder
from cloud_service.pipeline.model.weight_files import read_json, unsupported
from shared.errors import UnsupportedModel

_FILE = "chat_template.jinja"
_JSON_FILE = "chat_template.json"
_FOLDER = "additional_chat_templates"
_DEFAULT = "default"
_MAX_CHARACTERS = 100_000


def read_chat_template(folder: ContainedFolder, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the model's chat template, or None where it has none.

    Args:
        folder: The checkpoint.
        tokenizer_config: The content of its tokenizer_config.json.

    Raises:
        UnsupportedModel: There is a template, but it is not text, too long, or one of several without a default.
    """
    if folder.has(_FILE):
        return _checked(_read_text(folder), _FILE)
    if stated := tokenizer_config.get("chat_template"):
        return _checked(stated, "chat_template in tokenizer_config.json")
    if folder.has(_JSON_FILE) and (stated := read_json(folder, _JSON_FILE).get("chat_template")):
        return _checked(stated, _JSON_FILE)
    if folder.has(_FOLDER) and (names := [n for n in folder.names(_FOLDER) if n.endswith(".jinja")]):
        raise _without_default([name.removesuffix(".jinja") for name in names], _FOLDER)
    return None


def _checked(stated: object, place: str) -> str:
    template = _default_of(stated, place)
    if not isinstance(template, str):
        raise unsupported(f"{place} is {type(template).__name__}", "text, or named templates as text")
    if len(template) > _MAX_CHARACTERS:
        raise unsupported(f"{place} has {len(template)} characters", f"at most {_MAX_CHARACTERS}")
    return template


def _default_of(stated: object, place: str) -> object:
    """Return the default of named templates; what is not a collection of them is returned as it is."""
    match stated:
        case list():
            if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in stated):
                raise unsupported(f"{place} is a list without names", '[{"name", "template"}, …]')
            named = {entry["name"]: entry.get("template") for entry in stated}
        case dict():
            named = stated
        case _:
            return stated
    if _DEFAULT in named:
        return named[_DEFAULT]
    if len(named) != 1:
        raise _without_default(list(named), place)
    return next(iter(named.values()))


def _without_default(names: list[str], place: str) -> UnsupportedModel:
    found = f"{place} has the templates {', '.join(names)[:200] or '(none)'}"
    return UnsupportedModel(
        found,
        needed=f"one called {_DEFAULT!r}",
        next_step=f"save the template that conversations shall use as {_FILE} in the model folder",
        param="model",
    )


def _read_text(folder: ContainedFolder) -> str:
    try:
        data = folder.read(_FILE, max_bytes=MAX_DOCUMENT_BYTES)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise unsupported(f"{_FILE} is not UTF-8: {error.reason}", "UTF-8") from error
