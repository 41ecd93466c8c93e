"""Chat templates of well-known kinds, shortened to what decides their text, and a reader of Go's templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2

from shared.errors import DataError

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set s = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set s = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and s %}{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m['content'] %}{% else %}"
    "{% set c = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m['content'] }}\n{% endfor %}"
SYSTEM_LAST = (
    "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}|{% endfor %}"
    "{% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}"
)

_ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def jinja_text(template: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what a template writes, up to where the answer begins, with <s> and </s> for begin and end."""

    def refuse(message: str) -> NoReturn:
        raise DataError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # noqa: S701  text, not HTML
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", raise_exception=refuse
    )


def go_text(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """Return what Go's text/template makes of the actions that Ollama templates here are written with.

    Compared by hand with Go 1.19's own text/template for all templates of this module.
    """
    parts = _ACTION.split(template)
    source = [f"out.append({parts[0]!r})"]
    depth = 0
    for action, text in zip(parts[1::2], parts[2::2], strict=True):
        words = action.strip()
        if words == "end":
            depth -= 1
        elif words.startswith("else"):
            condition = words.removeprefix("else").strip()
            source.append("    " * (depth - 1) + (f"elif {_condition(condition)}:" if condition else "else:"))
            source.append("    " * depth + "pass")
        elif words.startswith(("if", "range")):
            source.append("    " * depth + ("for m in messages:" if "range" in words else f"if {_condition(words)}:"))
            depth += 1
            source.append("    " * depth + "pass")
        else:
            source.append("    " * depth + _statement(words))
        source.append("    " * depth + f"out.append({text!r})")
    out: list[str] = []
    exec("\n".join(source), {"out": out, "messages": messages})  # noqa: S102  written just above
    return "".join(out)


def _condition(words: str) -> str:
    match = re.fullmatch(r'if (eq|ne) (\.Role|\$before) "(\w*)"', words)
    assert match is not None, words
    name = "m['role']" if match[2] == ".Role" else "before"
    return f"{name} {'==' if match[1] == 'eq' else '!='} {match[3]!r}"


def _statement(words: str) -> str:
    return {
        '$before := ""': "before = ''",
        "$before = .Role": "before = m['role']",
        ".Content": "out.append(m['content'])",
        '"{{"': "out.append('{{')",
    }[words]
