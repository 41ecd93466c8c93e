"""Text to ids and back, and chat templates that cannot escape."""

from __future__ import annotations

import pytest
from tiny_bundle import TinyBundle, byte_tokenizer_json

from shared.bundle.config import TokenizerSettings
from shared.bundle.read import read_bundle
from shared.errors import DataError, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "[{{ message.role }}] {{ message.content }}{{ eos_token }}\n"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer_with(**settings: object) -> BundleTokenizer:
    defaults = {"prepend_bos": True, "bos_token_id": 256, "eos_token_ids": [257], "pad_token_id": 258}
    return BundleTokenizer(
        byte_tokenizer_json(), TokenizerSettings.model_validate(defaults | {"context_length": 128} | settings)
    )


def test_text_comes_back_from_its_ids(tiny_bundle: TinyBundle) -> None:
    tokenizer = BundleTokenizer.from_bundle(read_bundle(tiny_bundle.layout, tiny_bundle.digest))

    ids = tokenizer.encode("Grüße, 世界!")

    assert len(ids) == len("Grüße, 世界!".encode())
    assert not {256, 257, 258} & set(ids)
    assert tokenizer.decode([256, *ids, 257]) == "Grüße, 世界!"


def test_streamed_text_is_the_decoded_text_in_whole_characters() -> None:
    tokenizer = tokenizer_with()

    pieces = list(tokenizer.decode_stream([256, *tokenizer.encode("aß世")]))

    assert pieces == ["a", "ß", "世"]


def test_the_first_token_is_prepended_only_where_the_bundle_says_so() -> None:
    assert tokenizer_with().bos_ids == [256]
    assert tokenizer_with(prepend_bos=False).bos_ids == []
    assert tokenizer_with(bos_token_id=None).bos_ids == []


def test_padding_falls_back_to_the_end_token_then_to_zero() -> None:
    assert tokenizer_with().pad_id == 258
    assert tokenizer_with(pad_token_id=None).pad_id == 257
    assert tokenizer_with(pad_token_id=None, eos_token_ids=[]).pad_id == 0


def test_settings_of_the_bundle_are_passed_on() -> None:
    tokenizer = tokenizer_with(eos_token_ids=[257, 10])
    assert (tokenizer.eos_ids, tokenizer.context_length, tokenizer.largest_id) == ([257, 10], 128, 258)


def test_a_chat_template_is_rendered() -> None:
    text = tokenizer_with(chat_template=TEMPLATE).apply_chat_template(MESSAGES)
    assert text == "<s>[user] Hi</s>\n[assistant] Hello</s>\n[assistant]"


def test_a_conversation_starts_with_one_first_token_whoever_wrote_it() -> None:
    by_template = tokenizer_with(chat_template=TEMPLATE).encode_chat(MESSAGES)
    by_settings = tokenizer_with().encode_chat(MESSAGES)

    assert by_template[0] == by_settings[0] == 256
    assert by_template.count(256) == by_settings.count(256) == 1


@pytest.mark.parametrize(("prompt", "bos"), [("Hi", True), ("<s>Hi", True), ("<s>Hi", False)])
def test_a_prompt_starts_with_one_first_token_whoever_wrote_it(prompt: str, bos: bool) -> None:
    assert tokenizer_with(prepend_bos=bos).encode_prompt(prompt) == [256, 39, 72]


def test_a_template_reads_the_special_tokens_and_the_tools_it_is_given() -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ tools[0].name }}{{ messages[0].tool_calls[0].id }}"
    tokenizer = tokenizer_with(chat_template=template, eos_token_ids=[257, 65])
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}]
    assert tokenizer.apply_chat_template(messages, tools=[{"name": "weather"}]) == "<s></s><pad>weatherc1"


def test_a_special_token_that_a_model_lacks_is_undefined_to_its_template() -> None:
    template = "{% if bos_token is defined %}{{ bos_token }}{% else %}none{% endif %}"
    assert tokenizer_with(chat_template=template, bos_token_id=None).apply_chat_template(MESSAGES) == "none"


def test_without_a_template_each_message_is_a_line() -> None:
    tokenizer = tokenizer_with()
    assert tokenizer.apply_chat_template(MESSAGES) == "User: Hi\nAssistant: Hello\nAssistant:"
    assert tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False) == "User: Hi\nAssistant: Hello\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% unknown %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_hostile_or_broken_template_is_refused(template: str) -> None:
    with pytest.raises(UnsupportedModel, match="chat template fails"):
        tokenizer_with(chat_template=template).apply_chat_template(MESSAGES)


def test_a_template_may_refuse_messages() -> None:
    tokenizer = tokenizer_with(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        tokenizer.apply_chat_template(MESSAGES)


def test_a_broken_tokenizer_file_is_refused() -> None:
    settings = TokenizerSettings(prepend_bos=False, context_length=8)
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        BundleTokenizer('{"model": 3}', settings)
