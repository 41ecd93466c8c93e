"""Tokenizers that would take memory or time out of proportion: refused before they are built."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_service.pipeline.model.tokenization import TextEncoder, load_encoder
from cloud_service.pipeline.model.tokenizer_bounds import check_tokenizer
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
ARCHITECTURE = {"model_type": "llama", "vocab_size": 260}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def change_and_load(folder: Path, change: Callable[[dict[str, Any]], object]) -> TextEncoder:
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return load_encoder(folder, ARCHITECTURE, 64)


def added_token(token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": "[MORE]", "special": True} | flags


def sequence(*steps: object) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


@pytest.mark.attack
@pytest.mark.parametrize("token_id", [4_294_967_290, 260 + 65_536, -1])
def test_an_id_far_beyond_the_models_vocabulary_is_refused(make_checkpoint: MakeCheckpoint, token_id: int) -> None:
    with pytest.raises(UnsupportedModel, match=rf"token 'big' has the id {token_id}\nNeeded: ids below 65796"):
        change_and_load(make_checkpoint(), lambda document: document["model"]["vocab"].update(big=token_id))
    with pytest.raises(UnsupportedModel, match=rf"has the id {token_id}"):
        change_and_load(make_checkpoint(), lambda document: document["added_tokens"].append(added_token(token_id)))


@pytest.mark.attack
def test_an_id_far_beyond_the_vocabulary_is_refused_in_vocab_json_too(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 4294967290}')
    (folder / "merges.txt").write_text("")
    with pytest.raises(UnsupportedModel, match="token 'a' has the id 4294967290"):
        load_encoder(folder, ARCHITECTURE, 64)


@pytest.mark.attack
@pytest.mark.parametrize("token", [260, 2**30])
def test_an_end_of_text_that_the_model_does_not_have_is_refused(make_checkpoint: MakeCheckpoint, token: int) -> None:
    folder = make_checkpoint()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, token]}))
    with pytest.raises(UnsupportedModel, match=f"texts begin or end with token {token}, and the model has 260"):
        load_encoder(folder, ARCHITECTURE, 64)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("kind", "steps", "message"),
    [
        ("normalizer", sequence(*[DOUBLE] * 40), r"the normalizer can make a text 1\.1e\+12 times as long"),
        ("normalizer", sequence(sequence(*[DOUBLE] * 4), sequence(*[DOUBLE] * 4)), "256 times as long"),
        ("normalizer", {**DOUBLE, "content": "a" * 65}, "65 times as long"),
        ("normalizer", {**DOUBLE, "pattern": {"Regex": ""}, "content": "a" * 64}, "65 times as long"),
        ("normalizer", {**DOUBLE, "content": "a" * 5000}, "text of at most 4096 characters"),
        ("normalizer", sequence(*[{"type": "ByteLevel"}] * 4), "256 times as long"),
        ("normalizer", sequence({"type": "NFKD"}, DOUBLE, {"type": "NFKD"}), "the step NFKD 2 times"),
        ("normalizer", sequence(*[{"type": "Strip", "strip_left": True, "strip_right": True}] * 65), "at most 64"),
        ("normalizer", {"pattern": {"String": "a"}, "content": "a" * 99}, "one of the normalizers has no type"),
        ("normalizer", {"type": "Prepend", "prepend": "▁" * 5000}, "text of at most 4096 characters"),
        ("decoder", {"type": "Sequence", "decoders": [DOUBLE] * 40}, r"the decoder can make a text 1\.1e\+12 times"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 4},
            "the pre_tokenizer can make a text 256 times as long",
        ),
        ("post_processor", {"type": "TemplateProcessing", "single": [{}] * 65}, "single has 65 entries"),
        (
            "post_processor",
            {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [4_294_967_290]}}},
            "has the id 4294967290",
        ),
    ],
)
def test_steps_that_grow_a_text_without_bound_are_refused(
    make_checkpoint: MakeCheckpoint, kind: str, steps: object, message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        change_and_load(make_checkpoint(), lambda document: document.update({kind: steps}))


@pytest.mark.attack
def test_steps_that_are_nested_too_deeply_are_refused(make_checkpoint: MakeCheckpoint) -> None:
    step = DOUBLE
    for _ in range(10):
        step = sequence(step)
    with pytest.raises(UnsupportedModel, match="nested deeper than 8"):
        change_and_load(make_checkpoint(), lambda document: document.update(normalizer=step))


@pytest.mark.attack
def test_a_map_that_makes_a_long_text_of_one_character_is_refused() -> None:
    characters = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"a\0" + b"a" * 33 + b"\0").decode()
    document = {"model": {"vocab": {}}, "normalizer": {"type": "Precompiled", "precompiled_charsmap": characters}}
    with pytest.raises(UnsupportedModel, match="replaces a character by 33 characters"):
        check_tokenizer(document, 260)


def test_the_steps_of_real_families_are_allowed() -> None:
    llama = {
        "normalizer": sequence(
            {"type": "Prepend", "prepend": "▁"}, {**DOUBLE, "pattern": {"String": " "}, "content": "▁"}
        ),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {**DOUBLE, "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated", "invert": False}
    qwen = {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]},
        "post_processor": {"type": "ByteLevel"},
    }
    for steps in (llama, qwen):
        check_tokenizer({"model": {"vocab": {"a": 0}, "merges": ["a b", ["c", "d"]]}} | steps, 260)
    check_tokenizer({"model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2]]}}, 260)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "there is no model"),
        ({"model": {"vocab": 7}}, "vocab is int"),
        ({"model": {"vocab": {"a" * 4097: 0}}}, "text of at most 4096 characters"),
        ({"model": {"vocab": [["a", 0.0]] * 65_797}}, "vocab has 65797 entries"),
        ({"model": {"vocab": {}, "merges": ["a" * 8194]}}, "a merge is"),
        ({"model": {"vocab": {}}, "added_tokens": {"a": 1}}, "added_tokens has dict entries"),
        ({"model": {"vocab": {}}, "added_tokens": [1]}, "an added token is int"),
        ({"model": {"vocab": {"a": 1.0}}}, r"has the id 1\.0"),
    ],
)
def test_what_is_not_a_tokenizer_is_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        check_tokenizer(document, 260)


@pytest.mark.attack
def test_a_key_that_is_named_twice_is_refused(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    document = (folder / "tokenizer.json").read_text().rstrip().removesuffix("}")
    (folder / "tokenizer.json").write_text(document + ', "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json: an object names a key twice"):
        load_encoder(folder, ARCHITECTURE, 64)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////////w=="}}, "cannot be read"),
        ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "cannot be read"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                                "pair": [], "special_tokens": {}}},
            "the tokenizer fails at a text",
        ),
    ],
)  # fmt: skip
def test_a_panic_of_the_tokenizers_library_is_a_typed_refusal(
    make_checkpoint: MakeCheckpoint, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModel, match=message) as caught:
        change_and_load(make_checkpoint(), lambda document: document.update(changes))
    assert type(caught.value.__cause__).__name__ == "PanicException"
