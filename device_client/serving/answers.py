"""From pieces of text to the answers and streams of OpenAI's interface.

    whole     one JSON object once all texts have ended
    stream    server-sent events, one for each piece, then ``[DONE]``

Texts whose reader has gone away are given up. Costs nothing beside the texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from device_client.serving.asked import Answer, Asked
from device_client.serving.openai_api import ApiError
from device_client.serving.text_queue import Event, QueueFull, Request, TextQueue, Written
from device_client.texts.continuation import Chosen
from shared.errors import ResourceError, ZoError
from shared.model.tokenizer import BundleTokenizer

IsGone = Callable[[], Awaitable[bool]]
"""Whether who asked has gone away."""


class Answers:
    """Answers what is asked.

    Args:
        queue: Writes texts.
        tokenizer: Of all models.
    """

    def __init__(self, queue: TextQueue, tokenizer: BundleTokenizer) -> None:
        self._queue, self._tokenizer = queue, tokenizer

    async def whole(self, asked: Asked, is_gone: IsGone) -> dict[str, Any]:
        """Return the answer once all its texts have ended; nobody needs it any more where who asked is gone.

        Raises:
            ApiError: The server is busy, or the request does not fit its memory.
            ZoError: The texts could not be written.
        """
        events = self._events(asked)
        try:
            async for _ in events:
                if await is_gone():
                    break
        finally:
            await events.aclose()
        choices = [self._choice(asked, index) for index in range(len(asked.answers))]
        return self._head(asked, "chat.completion", "text_completion") | {"choices": choices, "usage": asked.usage()}

    async def stream(self, asked: Asked, *, has_usage: bool) -> AsyncIterator[str]:
        """Yield the answer piece by piece, as server-sent events.

        Args:
            asked: The request.
            has_usage: Whether the last event counts the tokens.

        Raises:
            ApiError: The server is busy, or the request does not fit its memory; before the first event.
        """
        events = self._events(asked)
        first = await anext(events, None)  # what is wrong with the request comes before the first byte

        async def lines() -> AsyncIterator[str]:
            try:
                if asked.kind == "chat":
                    for index in range(len(asked.answers)):
                        yield self._event(asked, index, {"role": "assistant", "content": ""}, None, None)
                if first is not None:
                    yield self._event_of(asked, *first)
                async for index, written in events:
                    yield self._event_of(asked, index, written)
                if has_usage:
                    head = self._head(asked, "chat.completion.chunk", "text_completion")
                    yield _line(head | {"choices": [], "usage": asked.usage()})
                yield "data: [DONE]\n\n"
            except ApiError as error:
                yield _line(error.body)
            finally:
                await events.aclose()

        return lines()

    async def _events(self, asked: Asked) -> AsyncGenerator[tuple[int, Written]]:
        """Yield every piece with the number of its text, and remember it; nothing is written after the last one."""
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

        def hear_of(prompt: int) -> Callable[[Event], None]:
            return lambda event: _tell(loop, heard, (prompt, event))

        requests = [
            Request(asked.model, ids, asked.samplings, hear_of(number)) for number, ids in enumerate(asked.prompts)
        ]
        try:
            for request in requests:
                self._queue.submit(request)
            pending = len(asked.answers)
            while pending:
                prompt, event = await heard.get()
                if isinstance(event, ZoError):
                    raise event
                index = prompt * len(asked.samplings) + event.index
                self._remember(asked.answers[index], event)
                pending -= event.piece.finish_reason is not None
                yield index, event
        except ZoError as error:
            raise api_error(error) from error
        finally:
            for request in requests:
                self._queue.cancel(request)

    def _remember(self, answer: Answer, event: Written) -> None:
        piece = event.piece
        answer.text.append(piece.text)
        answer.finish_reason = piece.finish_reason
        answer.tokens += 1  # the token that ends a text is written too
        if piece.chosen is not None:
            answer.chosen.append(piece.chosen)

    def _head(self, asked: Asked, of_chat: str, of_completion: str) -> dict[str, Any]:
        return {
            "id": asked.identifier,
            "object": of_chat if asked.kind == "chat" else of_completion,
            "created": asked.created,
            "model": asked.model,
        }

    def _choice(self, asked: Asked, index: int) -> dict[str, Any]:
        answer = asked.answers[index]
        text, likeliest = "".join(answer.text), asked.samplings[0].likeliest
        if asked.kind == "chat":
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            said = {"text": text}
        logprobs = None if likeliest is None else self._logprobs(asked, answer.chosen)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": answer.finish_reason}

    def _event_of(self, asked: Asked, index: int, written: Written) -> str:
        piece = written.piece
        said = ({"content": piece.text} if piece.text else {}) if asked.kind == "chat" else piece.text
        return self._event(asked, index, said, piece.chosen, piece.finish_reason)

    def _event(
        self, asked: Asked, index: int, said: dict[str, str] | str, chosen: Chosen | None, finish_reason: str | None
    ) -> str:
        choice = {
            "index": index,
            "delta" if asked.kind == "chat" else "text": said,
            "logprobs": None if chosen is None else self._logprobs(asked, [chosen]),
            "finish_reason": finish_reason,
        }
        return _line(self._head(asked, "chat.completion.chunk", "text_completion") | {"choices": [choice]})

    def _logprobs(self, asked: Asked, chosen: list[Chosen]) -> dict[str, Any]:
        return self._chat_logprobs(chosen) if asked.kind == "chat" else self._completion_logprobs(chosen)

    def _chat_logprobs(self, chosen: list[Chosen]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._text_of(token)
            return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}

        content = [
            entry(each.chosen.token, each.chosen.logprob)
            | {"top_logprobs": [entry(one.token, one.logprob) for one in each.likeliest]}
            for each in chosen
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, chosen: list[Chosen]) -> dict[str, Any]:
        texts = [self._text_of(each.chosen.token) for each in chosen]
        return {
            "tokens": texts,
            "token_logprobs": [each.chosen.logprob for each in chosen],
            "top_logprobs": [{self._text_of(one.token): one.logprob for one in each.likeliest} for each in chosen],
            "text_offset": [sum(map(len, texts[:index])) for index in range(len(texts))],
        }

    def _text_of(self, token: int) -> str:
        return self._tokenizer.decode([token], with_control_tokens=True)


def api_error(error: ZoError) -> ApiError:
    """Return an error as OpenAI's interface shows it."""
    text = error.http_text
    if isinstance(error, QueueFull):
        return ApiError(429, text, kind="server_error", code="server_busy", headers={"retry-after": "5"})
    if isinstance(error, ResourceError) and error.param:
        return ApiError(400, text, code="memory_exceeded", param=error.param)
    if error.status == 422:
        return ApiError(400, text, code=error.slug, param=error.param)
    return ApiError(500, text, kind="server_error", code=error.slug)


def _tell(loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[Any], event: object) -> None:
    """Hand an event to the loop of who asked, which may have ended meanwhile."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(heard.put_nowait, event)


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
