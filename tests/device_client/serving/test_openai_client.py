"""OpenAI's own client works with ``zo-device serve`` unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_device import Server, serving

SAID: list[Any] = [{"role": "user", "content": "Hi 1"}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_the_bundle_and_its_runs(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "labeller", "talker"]
    assert client.models.retrieve("talker").owned_by == "zo-device"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize("model", ["tiny", "talker", "labeller"])
def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=SAID, max_tokens=5, temperature=0)

    (choice,) = answer.choices
    assert (choice.message.role, choice.finish_reason in ("length", "stop")) == ("assistant", True)
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 5 < answer.usage.prompt_tokens


def test_a_stream_has_the_text_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "talker", "messages": SAID, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked)

    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)


def test_a_completion_continues_each_prompt_as_text_or_in_tokens(client: openai.OpenAI) -> None:
    both = client.completions.create(model="tiny", prompt=["ab", "cd"], max_tokens=4, temperature=0)
    tokens = client.completions.create(model="tiny", prompt=[256, *b"ab"], max_tokens=4, temperature=0)
    streamed = client.completions.create(model="tiny", prompt="ab", max_tokens=4, temperature=0, stream=True)

    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text != both.choices[1].text
    assert "".join(chunk.choices[0].text for chunk in streamed) == both.choices[0].text
    assert tokens.usage is not None
    assert tokens.usage.prompt_tokens == 3  # byte tokens of this tokenizer are its own; their number is what counts


def test_a_seed_repeats_an_answer_and_choices_differ(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": SAID, "max_tokens": 12, "seed": 5, "n": 3, "temperature": 1.5}

    first, again = (client.chat.completions.create(**asked) for _ in range(2))

    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 30, "seed": 3, "temperature": 2.0}
    text = client.completions.create(**asked).choices[0].text
    stop = text[4:6]

    stopped = client.completions.create(**asked, stop=[stop]).choices[0]

    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


def test_probabilities_come_where_they_are_wanted(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "temperature": 0}
    chat = client.chat.completions.create(messages=SAID, logprobs=True, top_logprobs=2, **asked).choices[0]
    text = client.completions.create(prompt="ab", logprobs=2, **asked).choices[0]

    assert chat.logprobs is not None
    assert chat.logprobs.content is not None
    for token in chat.logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.logprob < 0
    assert text.logprobs is not None
    assert len(text.logprobs.tokens or []) == 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 99}, "n"),
        ({"messages": []}, "messages"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, "messages"),
        ({"model": "nobody"}, "model"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(client: openai.OpenAI, change: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": SAID, "max_tokens": 3} | change

    with pytest.raises(openai.APIStatusError) as error:
        client.chat.completions.create(**asked)

    assert error.value.status_code in (400, 404)
    assert error.value.param is not None
    assert error.value.param.split(".")[0] == param


def test_fields_that_steer_openais_own_service_change_nothing(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": SAID, "max_tokens": 3, "temperature": 0}
    plain = client.chat.completions.create(**asked).choices[0].message.content

    with_more = client.chat.completions.create(
        **asked, user="me", store=False, metadata={"a": "b"}, presence_penalty=0, logit_bias={}, tools=[]
    )

    assert with_more.choices[0].message.content == plain


def test_a_conversation_with_a_system_goes_to_runs_of_conversations_only(client: openai.OpenAI) -> None:
    said: list[Any] = [{"role": "system", "content": "S"}, *SAID]
    client.chat.completions.create(model="talker", messages=said, max_tokens=2)

    with pytest.raises(openai.BadRequestError, match="tuned on labelled rows"):
        client.chat.completions.create(model="labeller", messages=said, max_tokens=2)


def test_a_developer_speaks_as_the_system(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model="tiny", messages=[{"role": role, "content": "S"}, *SAID], max_tokens=6, temperature=0
        ).choices[0].message.content
        for role in ("developer", "system")
    ]  # fmt: skip

    assert answers[0] == answers[1]


def test_many_requests_at_once_have_the_answers_of_each_alone(server: Server, client: openai.OpenAI) -> None:
    asked = [
        {"model": model, "messages": [{"role": "user", "content": f"Hi {number}"}], "max_tokens": 12, "temperature": 0}
        for number in range(8)
        for model in ("tiny", "talker")
    ]
    alone = [client.chat.completions.create(**each).choices[0].message.content for each in asked]  # type: ignore[call-overload]

    async def together() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as many:
            answers = await asyncio.gather(*(many.chat.completions.create(**each) for each in asked))  # type: ignore[call-overload]
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == alone


def test_a_reader_who_goes_away_frees_the_server(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=100, temperature=0, stream=True)
    next(iter(stream))
    stream.close()

    assert client.chat.completions.create(model="talker", messages=SAID, max_tokens=2).choices


def test_a_key_is_needed_where_the_server_has_one(served_home: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret-key\n")
    with serving(served_home, "--api-key-file", str(tmp_path / "key"), "--run", "talker") as locked:
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret-key", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny", "talker"]
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as error:
                client.models.list()
            assert error.value.code == "invalid_api_key"
