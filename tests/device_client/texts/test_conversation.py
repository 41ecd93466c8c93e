"""A conversation answers as the whole of it would be answered anew, and reads only what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from random_bundle import make_case
from tiny_bundle import TinyBundle

from device_client.model.decoding.reader import OneByOneReader, SideBySideReader, reader_of
from device_client.model.open import Machine, open_for_text
from device_client.model.sparse_model import SparseModel
from device_client.texts.asking import prompts_for
from device_client.texts.continuation import Sampling
from device_client.texts.conversation import Conversation
from shared.bundle.read import read_bundle
from shared.errors import DataError

SAMPLING = Sampling(max_new_tokens=4, seed=0)


@pytest.fixture(scope="module", params=["plain", "transformers"])
def model(
    request: pytest.FixtureRequest, tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory
) -> SparseModel:
    """The tiny Llama, which the plain network reads, and a Gemma, which transformers reads."""
    if request.param == "plain":
        return open_for_text(read_bundle(tiny_bundle.layout, tiny_bundle.digest), Machine(device="cpu"))
    bundle = make_case(tmp_path_factory.mktemp("gemma"), "gemma2").bundle
    return open_for_text(bundle, Machine(device="cpu"))


def conversation(model: SparseModel, **options: str) -> Conversation:
    return Conversation(model, prompts_for(model.tokenizer, None), **options)


def answer(asked: Conversation, text: str, warnings: list[str] | None = None) -> str:
    heard: list[str] = [] if warnings is None else warnings
    answer = asked.ask(text, SAMPLING, warn=heard.append)
    return "".join(answer.pieces())


def answered_anew(model: SparseModel, messages: Sequence[dict[str, str]]) -> str:
    """The greedy answer to the whole conversation, by the model's own loop."""
    question = prompts_for(model.tokenizer, None).conversation({"messages": list(messages)})
    ids: Iterator[int] = model.generate(question.ids, max_new_tokens=4, stop_ids=model.tokenizer.eos_ids)
    return model.tokenizer.decode(list(ids))


def test_each_family_has_the_reader_that_serves_it(model: SparseModel) -> None:
    is_plain = model.config.architecture["model_type"] == "llama"
    assert isinstance(reader_of(model), SideBySideReader if is_plain else OneByOneReader)


def test_every_answer_is_that_to_the_whole_conversation(model: SparseModel) -> None:
    asked = conversation(model, system="S")

    for text in ("a", "b"):
        found = answer(asked, text)
        before = asked.messages[:-1]
        assert found == answered_anew(model, before)

    assert [message["role"] for message in asked.messages] == ["system", *("user", "assistant") * 2]


def test_an_answer_that_is_stopped_counts_as_said_so_far(model: SparseModel) -> None:
    asked = conversation(model)
    first = asked.ask("Hi!", SAMPLING, warn=lambda _: None)
    pieces = first.pieces()
    said = next(pieces) + next(pieces)

    first.stop()

    assert asked.messages[-1] == {"role": "assistant", "content": said}
    assert first.result().finish_reason == "stopped"
    assert answer(asked, "Go on.") == answered_anew(model, asked.messages[:-1])


def test_the_oldest_messages_are_left_out_where_the_context_is_full(model: SparseModel) -> None:
    asked, warnings = conversation(model, system="S"), []
    for number in range(5):
        answer(asked, f"{number} {'x' * 20}", warnings)

    assert warnings
    assert asked.messages[0] == {"role": "system", "content": "S"}
    assert asked.messages[-2]["content"].startswith("4 ")
    assert len(asked.messages) < 1 + 2 * 5


def test_a_question_that_does_not_fit_alone_is_refused_and_nothing_was_said(model: SparseModel) -> None:
    asked = conversation(model)

    with pytest.raises(DataError, match="a question of"):
        asked.ask("x" * 500, SAMPLING, warn=lambda _: None)

    assert asked.messages == []


def test_a_new_conversation_forgets_the_last_one(model: SparseModel, tmp_path: Path) -> None:
    asked = conversation(model)
    first = answer(asked, "Hi!")
    answer(asked, "More.")

    asked.begin()

    assert answer(asked, "Hi!") == first
    assert len(asked.messages) == 2
