"""Ollama asks as the model's own template asks, or the export is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, GEMMA, LLAMA_2, LLAMA_3, MISTRAL, NUMBERED, SYSTEM_LAST, ZEPHYR, go_text, jinja_text
from exported_subject import published, tuned
from random_bundle import Case

from device_client.export.ollama import go_template, modelfile, ollama_template
from device_client.export.subject import Subject
from device_client.export.template_pieces import template_pieces
from shared.errors import UnsupportedModel

TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model.\nOf language."},
    {"role": "user", "content": "{{ really }} <b>?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def with_template(subject: Subject, template: str | None) -> Subject:
    """Return the subject with another chat template; nothing else of its bundle is looked at here."""
    settings = subject.bundle.config.tokenizer.model_copy(update={"chat_template": template})
    config = subject.bundle.config.model_copy(update={"tokenizer": settings})
    return Subject(
        type(subject.bundle)(subject.bundle.layout, subject.bundle.digest, subject.bundle.manifest, config),
        subject.reference,
        subject.tuned,
    )


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, LLAMA_3, ZEPHYR])
def test_pieces_in_gos_language_write_what_the_template_writes(template: str) -> None:
    pieces = template_pieces(partial(jinja_text, template))
    for messages in (TALK[:1], TALK, [SYSTEM, *TALK[:1]], [SYSTEM, *TALK]):
        assert go_text(go_template(pieces), messages) == jinja_text(template, messages)


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_a_template_may_take_no_system_message(template: str) -> None:
    pieces = template_pieces(partial(jinja_text, template))
    assert pieces.system is None
    assert go_text(go_template(pieces), TALK) == jinja_text(template, TALK)


@pytest.mark.parametrize(
    "template", [NUMBERED, SYSTEM_LAST, "always the same", CHATML.replace("'] }}<", "'] | upper }}<")]
)
def test_a_template_that_is_not_pieces_between_messages_is_refused(template: str) -> None:
    with pytest.raises(UnsupportedModel, match="--to gguf"):
        template_pieces(partial(jinja_text, template))


def test_the_first_token_is_left_to_llama_cpp_and_a_missing_system_message_is_told(
    case_of: Callable[..., Case],
) -> None:
    subject = with_template(published(case_of("llama").bundle), GEMMA)
    found = ollama_template(subject)
    assert "<s>" + go_text(found.text, TALK) == jinja_text(GEMMA, TALK)
    assert "takes no system message" in modelfile(found, subject, "m.gguf", 64)


def test_quotation_marks_that_would_end_the_template_are_refused(case_of: Callable[..., Case]) -> None:
    with pytest.raises(UnsupportedModel, match="quotation marks"):
        ollama_template(with_template(published(case_of("llama").bundle), CHATML.replace("You help.", '"""')))


def test_the_modelfile_names_file_context_and_where_an_answer_stops(case_of: Callable[..., Case]) -> None:
    subject = published(case_of("llama").bundle)
    lines = modelfile(ollama_template(subject), subject, "m-f16.gguf", 64).splitlines()
    assert "FROM ./m-f16.gguf" in lines
    assert "PARAMETER num_ctx 64" in lines
    assert 'PARAMETER stop "</s>"' in lines


@pytest.mark.parametrize(
    ("rendering", "wanted"),
    [
        ({"template": "{text} It was {label}", "label_words": [["a", "a"]]}, "{{ .Prompt }} It was"),
        ({"template": "Q: {{x {text}\nA: {label}", "label_words": []}, 'Q: {{ "{{" }}x {{ .Prompt }}\nA:'),
        ({}, "{{ .Prompt }}"),
        ({"task": "SST-2", "prompt_style": "opt"}, None),
    ],
)
def test_a_run_is_asked_as_its_rows_ask(
    case_of: Callable[..., Case], tmp_path: Path, rendering: dict[str, Any], wanted: str | None
) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run", config={"rendering": rendering})
    subject = with_template(subject, CHATML)  # which its rows do not use
    if wanted is None:
        with pytest.raises(UnsupportedModel, match="several fields"):
            ollama_template(subject)
    else:
        assert ollama_template(subject).text == wanted


def test_a_run_on_conversations_is_asked_by_the_template(case_of: Callable[..., Case], tmp_path: Path) -> None:
    subject = tuned(case_of("llama").bundle, tmp_path / "run", config={"rendering": {"rows": "messages"}})
    found = ollama_template(with_template(subject, ZEPHYR))
    assert go_text(found.text, TALK) == jinja_text(ZEPHYR, TALK)


def test_a_bundle_without_a_template_continues_texts(case_of: Callable[..., Case]) -> None:
    assert ollama_template(published(case_of("llama").bundle)).text == "{{ .Prompt }}"


def test_pieces_of_a_template_worked_by_hand() -> None:
    def render(messages: Any) -> str:
        return "".join(f"<{message['role'][0]}>{message['content']}." for message in messages) + "<a>"

    found = template_pieces(render)
    assert (found.first, found.answer, found.again, found.ask) == ("<u>", ".<a>", ".<u>", ".<a>")
    assert (found.system, found.after_system) == ("<s>", ".<u>")
