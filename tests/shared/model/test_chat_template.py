"""A chat template is a foreign program: what it may take is bounded, and a stopped one does not stop the next."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from pathlib import Path

import pytest

from shared.errors import DataError, UnsupportedModel
from shared.model.chat_template import ChatTemplate, RenderingLimits

PLAIN = {"messages": [{"role": "user", "content": "Hi"}]}
TIGHT = RenderingLimits(seconds=1, memory_bytes=128 * 1024 * 1024, characters=100_000)
NESTED_LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}" + (
    "{% endfor %}{% endfor %}"
)


def children() -> set[int]:
    """The rendering processes that this process has started and not yet reaped."""
    started = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in started if b"template_process" in Path(f"/proc/{pid}/cmdline").read_bytes()}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NESTED_LOOPS, "more than 1 s of processor time"),
        ("{{ 'a' * 10 ** 10 }}", "bytes of memory"),
        ("{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "memory"),
        ("{{ '%0999999999d' % 1 }}", "memory"),
        ("{{ 9 ** 99999999 }}", "more than 1 s of processor time"),
        ("{% for i in range(99999) %}0123456789{% endfor %}", "more than 100000 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without an end"),
    ],
    ids=["nested loops", "a long string", "doubling", "wide format", "a large power", "long output", "recursion"],
)
def test_a_template_that_takes_too_much_is_stopped(template: str, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(UnsupportedModel, match=reason):
        ChatTemplate(template, TIGHT).render(PLAIN)
    assert time.monotonic() - started < 60


@pytest.mark.attack
def test_a_stopped_template_does_not_harm_the_next_conversation() -> None:
    only_for_users = "{% if messages[0].role == 'loop' %}" + NESTED_LOOPS + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(only_for_users, TIGHT)
    with pytest.raises(UnsupportedModel, match="processor time"):
        template.render({"messages": [{"role": "loop", "content": ""}]})
    assert template.render(PLAIN) == "Hi"


def test_many_short_conversations_together_may_take_longer_than_one() -> None:
    about_half_a_second = "{% for i in range(20) %}{% for j in range(50000) %}{% endfor %}{% endfor %}{{ n }}"
    template = ChatTemplate(about_half_a_second, RenderingLimits(seconds=4))
    assert [template.render({"n": n}) for n in range(8)] == [str(n) for n in range(8)]


def test_one_process_renders_all_conversations_and_ends_with_the_template() -> None:
    before = children()
    template = ChatTemplate("{{ messages[0].content }}")
    assert children() == before
    assert [template.render(PLAIN), template.render(PLAIN)] == ["Hi", "Hi"]
    assert len(children() - before) == 1
    del template
    gc.collect()
    assert children() == before


def test_conversations_of_several_threads_do_not_mix() -> None:
    template, texts = ChatTemplate("{{ n }}"), {}

    def render(n: int) -> None:
        texts[n] = template.render({"n": n})

    threads = [threading.Thread(target=render, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {n: str(n) for n in range(16)}


def test_every_character_comes_back() -> None:
    text = "Grüße, 世界 \u2028 \x00 🙂"
    assert ChatTemplate("{{ text }}").render({"text": text}) == text
    assert json.loads(ChatTemplate("{{ text | tojson }}").render({"text": text})) == text


GENERATION = "{% for m in messages %}USER: {% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
OFFERED = {
    GENERATION: "USER: Hi",
    "{{ tools | tojson }}": '[{"name": "ü"}]',
    "{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}": '{\n "a": 2,\n "b": 1\n}',
    "{{ strftime_now('%Y') | length }}": "4",
    "{% for m in messages * 2 %}{% if loop.index0 %}{% break %}{% endif %}{{ m.role }}{% endfor %}": "user",
    "{% if documents is none %}no documents{% endif %}": "no documents",
    "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}": "2",
}


def test_what_transformers_offers_a_template_is_there() -> None:
    between = "{{ '|' }}"
    text = ChatTemplate(between.join(OFFERED)).render(PLAIN | {"tools": [{"name": "ü"}]})
    assert text.split("|") == list(OFFERED.values())


def test_the_reason_of_a_refusal_is_shown() -> None:
    with pytest.raises(DataError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(PLAIN)


def test_the_rendering_process_sees_nothing_of_the_environment() -> None:
    template = ChatTemplate("{{ n }}")
    template.render({"n": 1})
    assert {Path(f"/proc/{pid}/environ").read_bytes() for pid in children()} == {b""}
