"""From a request of OpenAI's interface to prompts in tokens, and how their texts are to be sampled.

A model is asked as its own rows ask (``texts.asking``). What does not fit its context is refused: nothing is cut
without a word. Costs what rendering and encoding cost. Knows nothing about HTTP.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from device_client.serving.models import ServedModel, ServedModels
from device_client.serving.openai_api import ApiError, ChatRequest, CompletionRequest
from device_client.tasks.prompts import Question
from device_client.texts.asking import ask_conversation
from device_client.texts.continuation import Chosen, Sampling
from shared.errors import InvalidRequest
from shared.model.tokenizer import BundleTokenizer

CHAT_TOKENS = 1024
"""New tokens of a chat answer where the request does not say how many."""

COMPLETION_TOKENS = 16
"""New tokens of a completion where the request does not say how many, as in OpenAI's interface."""

Kind = Literal["chat", "completion"]


@dataclass(slots=True)
class Answer:
    """What has come of one text so far.

    Attributes:
        text: Its pieces.
        chosen: Its tokens, where their probabilities are wanted.
        finish_reason: Why it has ended; None while it has not.
        tokens: How many were computed, the one that ended it included.
    """

    text: list[str] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0


@dataclass(slots=True)
class Asked:
    """A request whose prompts are known, and what has come of it.

    Attributes:
        kind: Of the interface.
        model: Name of the model.
        prompts: In tokens.
        samplings: Of each prompt's texts.
        identifier: Of the answer.
        created: Seconds since 1970.
        answers: What has come of each text: all of the first prompt, then all of the second.
    """

    kind: Kind
    model: str
    prompts: list[list[int]]
    samplings: list[Sampling]
    identifier: str
    created: int
    answers: list[Answer]

    def usage(self) -> dict[str, int]:
        """Return how many tokens were read and written."""
        read, written = sum(map(len, self.prompts)), sum(answer.tokens for answer in self.answers)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Asker:
    """Understands requests.

    Args:
        models: By name.
        tokenizer: Of all models.
    """

    def __init__(self, models: ServedModels, tokenizer: BundleTokenizer) -> None:
        self._models, self._tokenizer = models, tokenizer

    def chat(self, request: ChatRequest) -> Asked:
        """Return what a chat request asks.

        Raises:
            ApiError: There is no such model, or the conversation does not fit its context.
            InvalidRequest: A field is not served.
            DataError: The messages are malformed, or the template refuses them.
        """
        request.check_other_fields()
        served = self._find(request.model)
        messages = [message.model_dump(exclude_unset=True) for message in request.messages]
        for message in messages:
            if message["role"] == "developer":  # OpenAI's newer name; templates know the older one
                message["role"] = "system"
        question = ask_conversation(served.prompts, messages)
        return self._asked("chat", request, served, [self._whole(question)], CHAT_TOKENS, request.likeliest)

    def completion(self, request: CompletionRequest) -> Asked:
        """Return what a completion request asks; a run of labelled or prompt rows is asked as its rows ask.

        Raises:
            ApiError: There is no such model, or a prompt does not fit its context.
            InvalidRequest: A field is not served, or a token does not exist.
            DataError: A prompt is empty.
        """
        request.check_other_fields()
        served = self._find(request.model)
        prompts = [self._prompt(served, prompt) for prompt in request.prompts]
        return self._asked("completion", request, served, prompts, COMPLETION_TOKENS, request.logprobs)

    def _find(self, name: str) -> ServedModel:
        served = self._models.find(name)
        if served is None:
            names = ", ".join(each.name for each in self._models.all)
            raise ApiError(
                404, f"The model {name[:80]!r} does not exist here. There are: {names}", code="model_not_found",
                param="model",
            )  # fmt: skip
        return served

    def _prompt(self, served: ServedModel, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            if served.prompts.renderer.kind != "messages":
                return self._whole(served.prompts.question(prompt))
            ids = self._tokenizer.encode_prompt(prompt)
        else:
            ids = prompt
        if wrong := [token for token in ids if not 0 <= token <= self._tokenizer.largest_id]:
            raise InvalidRequest(f"token {wrong[0]}", needed=f"0 to {self._tokenizer.largest_id}", param="prompt")
        if not ids:
            raise InvalidRequest("an empty prompt", needed="at least one token", param="prompt")
        return self._whole(Question(ids, 0))

    def _whole(self, question: Question) -> list[int]:
        """Return a prompt that leaves room for an answer; nothing is cut without a word."""
        length = len(question.ids) + question.lost_tokens
        if question.lost_tokens or length >= self._tokenizer.context_length:
            raise ApiError(
                400,
                f"The prompt has {length} tokens; the model's context has {self._tokenizer.context_length}, and the "
                "answer needs at least one. Shorten the messages.",
                code="context_length_exceeded",
                param="messages",
            )
        return question.ids

    def _asked(
        self,
        kind: Kind,
        request: ChatRequest | CompletionRequest,
        served: ServedModel,
        prompts: list[list[int]],
        usual_tokens: int,
        likeliest: int | None,
    ) -> Asked:
        room = self._tokenizer.context_length - max(map(len, prompts))
        asked = request.new_tokens if isinstance(request, ChatRequest) else request.max_tokens
        seed = secrets.randbits(63) if request.seed is None else request.seed
        samplings = [
            Sampling(
                max_new_tokens=min(usual_tokens if asked is None else asked, room),
                seed=(seed + choice) % (1 << 64),
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                stops=request.stops,
                likeliest=likeliest,
            )
            for choice in range(request.n or 1)
        ]
        identifier = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
        answers = [Answer() for _ in range(len(prompts) * len(samplings))]
        return Asked(kind, served.name, prompts, samplings, identifier, int(time.time()), answers)
