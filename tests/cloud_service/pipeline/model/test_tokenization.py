"""The encoder of a checkpoint: as transformers tokenises, in every family and from every kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from checkpoint_tokenizers import (
    CHATML,
    PAGE,
    byte_tokenizer_with,
    plain_byte_tokenizer,
    write_tokenizer,
    write_vocabulary_and_merges,
)

from cloud_service.pipeline.model.load_model import read_outline
from cloud_service.pipeline.model.tokenization import load_encoder
from shared.errors import UnsupportedModel

MakeCheckpoint = Callable[..., Path]
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("family", "prepends", "bos"),
    [("llama", True, 256), ("mistral", True, 256), ("opt", True, 257), ("qwen2", False, None), ("qwen3", False, None)],
)
def test_texts_start_with_bos_where_the_tokenizer_puts_it(
    make_checkpoint: MakeCheckpoint, family: str, prepends: bool, bos: int | None
) -> None:
    folder = make_checkpoint(family)
    encoder = load_encoder(folder, read_outline(folder).architecture, 64)
    assert (encoder.settings.prepend_bos, encoder.settings.bos_token_id) == (prepends, bos)
    assert encoder.settings.eos_token_ids == [257]
    assert encoder.settings.pad_token_id == 258
    assert encoder.encode("Hi") == [39, 72]


@pytest.mark.parametrize("name", ["picollama-real", "picollama-sentiment", "stories260K-hf"])
def test_real_tokenizers_give_transformers_ids_and_are_published_unchanged(real_data: Path, name: str) -> None:
    folder = real_data / "models" / name
    encoder = load_encoder(folder, json.loads((folder / "config.json").read_text()), 512)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert [encoder.encode(text) for text in PAGE] == [theirs.encode(text, add_special_tokens=False) for text in PAGE]
    assert [encoder.bos + encoder.encode(text) for text in PAGE] == [theirs.encode(text) for text in PAGE]
    published, file = json.loads(encoder.to_json()), json.loads((folder / "tokenizer.json").read_text())
    assert published == file | {"truncation": None, "padding": None}


def test_a_tokenizer_of_vocabulary_and_merges_gives_the_ids_of_its_familys_class(tmp_path: Path) -> None:
    vocabulary = write_vocabulary_and_merges(tmp_path)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    first, word = len(vocabulary), vocabulary.__getitem__
    added = {str(first + place): {"content": text, "special": True} for place, text in enumerate(special)}
    settings: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "bos_token": None}
    write_tokenizer(tmp_path, None, **settings, pad_token="<|endoftext|>", added_tokens_decoder=added)
    encoder = load_encoder(tmp_path, {"model_type": "qwen2", "vocab_size": 320}, 64)
    # One digit at a time and the special tokens whole: what Qwen2's class knows and the two files do not say.
    assert encoder.encode("<|im_start|>hello 12 the<|im_end|>") == [
        first + 1, word("hello"), word("Ġ"), word("1"), word("2"), word("Ġthe"), first + 2,
    ]  # fmt: skip
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [encoder.encode(text) for text in PAGE] == [theirs.encode(text, add_special_tokens=False) for text in PAGE]
    assert (encoder.bos, encoder.settings.eos_token_ids) == ([], [first + 2])


def test_a_tokenizer_that_states_bos_beside_its_vocabulary_and_merges_puts_it_before_texts(tmp_path: Path) -> None:
    vocabulary = write_vocabulary_and_merges(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary | {"</s>": len(vocabulary)}))
    write_tokenizer(tmp_path, None, bos_token="</s>", eos_token="</s>", add_bos_token=True)
    encoder = load_encoder(tmp_path, {"model_type": "opt"}, 64)
    assert encoder.encode("hello") == [vocabulary["hello"]]
    assert encoder.bos == [len(vocabulary)] == encoder.settings.eos_token_ids


def test_tokens_that_only_the_settings_name_are_added(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(vocab_size=262)
    write_tokenizer(
        folder, None, eos_token="<|end|>", added_tokens_decoder={"259": {"content": "<|tool|>", "special": False}}
    )
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<|pad|>"}, "eos_token": "unused"}')
    encoder = load_encoder(folder, {"model_type": "llama", "vocab_size": 262}, 64)
    assert encoder.encode("a<|tool|><|end|>") == [64, 259, 260]
    assert encoder.settings.eos_token_ids == [260, 257]


def test_a_chat_templates_turn_end_stops_answers(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(vocab_size=270)
    write_tokenizer(folder, byte_tokenizer_with("<|im_start|>", "<|im_end|>"), eos_token="</s>", chat_template=CHATML)
    encoder = load_encoder(folder, {"model_type": "llama", "vocab_size": 270}, 64)
    assert encoder.settings.eos_token_ids == [257, 260]
    assert encoder.notes == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "the bundle's chat template fails: Unexpected end of template"),
        ("{{ messages[0].content.name.first }}", "chat template fails: .*has no attribute 'name'"),
        ("{{ messages[3].role }}", "chat template fails: list object has no element 3"),
        ("{{ raise_exception('only tools') }}", "refuses a question and its answer: .*only tools"),
        ("{# nothing #}", "it writes nothing for a question and its answer"),
    ],
)
def test_a_template_that_no_conversation_can_use_is_refused(
    make_checkpoint: MakeCheckpoint, template: str, message: str
) -> None:
    folder = make_checkpoint()
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UnsupportedModel, match=message):
        load_encoder(folder, {"model_type": "llama", "vocab_size": 260}, 64)


def test_a_template_may_refuse_system_messages(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + "{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    assert load_encoder(folder, {"model_type": "llama", "vocab_size": 260}, 64).settings.eos_token_ids == [257]


def test_an_encoder_notes_that_nothing_ends_a_text(tmp_path: Path) -> None:
    (note,) = load_encoder(write_tokenizer(tmp_path, plain_byte_tokenizer()), {"model_type": "qwen2"}, 64).notes
    assert "nothing in the model's files says which token ends a text" in note
