"""A folder that ``ollama create NAME -f FOLDER/Modelfile`` takes: a GGUF file and what Ollama must know beside it.

    FROM       the GGUF file
    TEMPLATE   how a conversation is asked, in Go's template language, from the pieces that the model's own template
               writes; of a run on labelled rows or prompts, how those rows ask
    PARAMETER  where an answer stops, and how long a context may be

Where the GGUF file says that texts begin with the beginning-of-text token, llama.cpp puts it there, and the template
leaves it out. Tools and images are not expressed. Costs what the GGUF file costs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from device_client.export.subject import Subject
from device_client.export.template_pieces import TemplatePieces, template_pieces
from device_client.tasks.prompts import prompts_of_run
from shared.errors import DataError, InvalidRequest, UnsupportedModel
from shared.model.tokenizer import BundleTokenizer

_MARK = "\ue000text\ue001"
_STOPS_AT = 8


@dataclass(frozen=True, slots=True)
class OllamaTemplate:
    """How Ollama asks.

    Attributes:
        text: In Go's template language.
        takes_system: Whether it has a place for a system message.
        is_chat: Whether it writes conversations; False asks with one text.
    """

    text: str
    takes_system: bool
    is_chat: bool


def modelfile(template: OllamaTemplate, subject: Subject, gguf_name: str, context_length: int) -> str:
    """Return the content of the Modelfile."""
    tokenizer = BundleTokenizer.from_bundle(subject.bundle)
    stops = [text for text in map(tokenizer.text_of, tokenizer.eos_ids) if text][:_STOPS_AT]
    lines = [
        f"# {subject.name}, exported by zo-device from bundle {subject.bundle.digest}",
        *([] if template.takes_system or not template.is_chat else ["# The model takes no system message."]),
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template.text}"""',
        f"PARAMETER num_ctx {context_length}",
        "PARAMETER temperature 0",
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
    ]
    return "\n".join(lines) + "\n"


def ollama_template(subject: Subject) -> OllamaTemplate:
    """Return how a bundle, or a run as it was tuned, is asked.

    Raises:
        UnsupportedModel: The template, or what the run's rows ask, cannot be expressed.
    """
    tokenizer = BundleTokenizer.from_bundle(subject.bundle)
    config = None if subject.tuned is None else subject.tuned.config
    is_chat = config is None or config["rendering"].get("rows") == "messages"
    if config is not None and not is_chat:
        return OllamaTemplate(_checked(_of_rows(config, tokenizer)), takes_system=False, is_chat=False)
    if subject.bundle.config.tokenizer.chat_template is None:
        return OllamaTemplate("{{ .Prompt }}", takes_system=False, is_chat=False)
    pieces = _without_bos(template_pieces(tokenizer.apply_chat_template), tokenizer)
    return OllamaTemplate(_checked(go_template(pieces)), takes_system=pieces.system is not None, is_chat=True)


def _of_rows(config: dict[str, Any], tokenizer: BundleTokenizer) -> str:
    """Return how the rows of a run ask, with the prompt where a row's text stands."""
    prompts = prompts_of_run(config, tokenizer)
    try:
        asked = prompts.renderer.question(prompts.renderer.question_of(_MARK, "the prompt"))
    except (DataError, InvalidRequest) as error:
        raise UnsupportedModel(
            "the run's rows have several fields, of which a prompt is made",
            needed="rows of one text each, or conversations",
            next_step="export it with --to gguf, and ask it with finished prompts",
            param="to",
        ) from error
    before, found, after = asked.partition(_MARK)
    if not found:
        raise _inexpressible("the run's rows do not show their text in the prompt")
    return _literal(_bare(before, tokenizer)) + "{{ .Prompt }}" + _literal(after)


def go_template(pieces: TemplatePieces) -> str:
    """Return Go's template: what stands before a message depends on the role before it."""
    system = (
        "" if pieces.system is None else f'{{{{ if eq .Role "system" }}}}{_literal(pieces.system)}{{{{ .Content }}}}'
    )
    before_user = (
        f'{{{{ if eq $before "assistant" }}}}{_literal(pieces.again)}'
        + (f'{{{{ else if eq $before "system" }}}}{_literal(pieces.after_system)}' if pieces.system is not None else "")
        + f"{{{{ else }}}}{_literal(pieces.first)}{{{{ end }}}}"
    )
    return (
        '{{ $before := "" }}{{ range .Messages }}'
        + system
        + ("{{ else if" if system else "{{ if")
        + f' eq .Role "user" }}}}{before_user}{{{{ .Content }}}}'
        + f'{{{{ else if eq .Role "assistant" }}}}{_literal(pieces.answer)}{{{{ .Content }}}}'
        + "{{ end }}{{ $before = .Role }}{{ end }}"
        + f'{{{{ if ne $before "assistant" }}}}{_literal(pieces.ask)}{{{{ end }}}}'
    )


def _without_bos(pieces: TemplatePieces, tokenizer: BundleTokenizer) -> TemplatePieces:
    system = None if pieces.system is None else _bare(pieces.system, tokenizer)
    return replace(pieces, first=_bare(pieces.first, tokenizer), system=system)


def _bare(begin: str, tokenizer: BundleTokenizer) -> str:
    """Return the beginning of a text without the token that llama.cpp puts there."""
    for token in tokenizer.bos_ids:
        begin = begin.removeprefix(tokenizer.text_of(token) or "")
    return begin


def _literal(text: str) -> str:
    """Return text as it stands in Go's template language."""
    return text.replace("{{", '{{ "{{" }}')


def _checked(template: str) -> str:
    """Return a template that a Modelfile can hold.

    Raises:
        UnsupportedModel: It holds three quotation marks, which end it there.
    """
    if '"""' in template or template.endswith('"'):
        raise _inexpressible("the text between messages has quotation marks that would end a Modelfile's template")
    return template


def _inexpressible(found: str) -> UnsupportedModel:
    return UnsupportedModel(
        found,
        needed="what a Modelfile can say",
        next_step="export it with --to gguf",
        param="to",
    )
