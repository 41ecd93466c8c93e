"""Files of foreign tokenizers: what is missing, damaged or hostile is refused before transformers reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tokenizers import byte_tokenizer_with, write_json, write_tokenizer, write_vocabulary_and_merges

from cloud_service.contained_folder import ContainedFolder
from cloud_service.pipeline.model.tokenizer_files import read_tokenizer, tokenizer_settings
from shared.errors import UnsupportedModel

LLAMA = {"model_type": "llama", "vocab_size": 320}
SAVE = r"AutoTokenizer\.from_pretrained\(folder\)\.save_pretrained\(folder\)"


def read(folder: Path) -> Any:
    files = ContainedFolder(folder)
    return read_tokenizer(files, LLAMA, tokenizer_settings(files))


def test_a_folder_without_a_tokenizer_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=rf"there is no tokenizer\.json(.|\n)*{SAVE}"):
        read(tmp_path)


def test_merges_that_are_not_pairs_are_refused(tmp_path: Path) -> None:
    write_vocabulary_and_merges(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(UnsupportedModel, match=r"merges\.txt has the line 'a b c'"):
        read(tmp_path)
    (tmp_path / "merges.txt").write_bytes(b"\xff \xfe\n")
    with pytest.raises(UnsupportedModel, match=r"merges\.txt is not UTF-8"):
        read(tmp_path)


@pytest.mark.attack
def test_no_class_and_no_path_of_the_models_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    folder = write_tokenizer(tmp_path, byte_tokenizer_with(), **settings, tokenizer_file="/etc/hostname")
    assert read(folder).encode("Hi").ids == [39, 72]
    (folder / "tokenizer.json").unlink()
    write_vocabulary_and_merges(folder)
    with pytest.raises(UnsupportedModel, match=r"vocab\.json cannot be read"):
        read(folder)


def _name(folder: Path, text: str, number: object) -> None:
    write_json(folder / "added_tokens.json", {text: number})


def _decode(folder: Path, text: str, number: object) -> None:
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": {str(number): {"content": text}}})


@pytest.mark.attack
@pytest.mark.parametrize("place", [_name, _decode])
@pytest.mark.parametrize("number", [4_294_967_290, -1, 2**70])
def test_added_tokens_with_ids_out_of_proportion_are_refused(
    tmp_path: Path, place: Callable[[Path, str, object], None], number: int
) -> None:
    write_tokenizer(tmp_path, byte_tokenizer_with())
    place(tmp_path, "[MORE]", number)
    with pytest.raises(UnsupportedModel, match=rf"token '\[MORE\]' has the id {number}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": 7}, "names the token '7'"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder is not an object"),
        ({"added_tokens_decoder": {"1": 7}}, "a token is '7'"),
    ],
)
def test_settings_that_are_no_tokens_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = write_tokenizer(tmp_path, byte_tokenizer_with(), **settings)
    with pytest.raises(UnsupportedModel, match=message):
        read(folder)


def test_truncation_and_padding_of_a_saved_tokenizer_are_not_kept(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer_with()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    written = json.loads(read(write_tokenizer(tmp_path, tokenizer)).to_str())
    assert (written["truncation"], written["padding"]) == (None, None)
