"""Writes the texts of many requests with one model, in one thread, side by side.

    turn      one pass: the next token of every text that is being written, and the next part of one prompt
    parts     a long prompt is read ``PROMPT_PART_TOKENS`` at a time, so nobody waits for another one's prompt
    fairness  requests begin in the order they came; texts of one model run together, and after ``TURNS_OF_A_MODEL``
              turns the next model that has work is swapped in
    memory    a request begins when the keys and values of its longest possible texts fit into what is left; one that
              would never fit is refused before it waits

A request that fails takes nobody with it but those in the same pass. Costs the passes; knows nothing about HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from device_client.model.decoding.reader import KeptText, Reader
from device_client.serving.models import ServedModels
from device_client.texts.continuation import Continuation, Piece, Sampling
from shared.byte_sizes import format_bytes
from shared.errors import ResourceError, ZoError
from shared.model.tokenizer import BundleTokenizer

PROMPT_PART_TOKENS = 128
TURNS_OF_A_MODEL = 32
MOST_TEXTS = 16
MOST_WAITING = 64
_ROOM = 1.5
"""Keys and values lie in buffers that are up to half as large again as what they hold."""


class QueueFull(ResourceError):
    """So many requests wait that another one is refused."""


@dataclass(frozen=True, slots=True)
class Written:
    """A piece of one of a request's texts."""

    index: int
    piece: Piece


Event = Written | ZoError
"""What a request hears; after a ``ZoError`` nothing more comes."""


@dataclass(eq=False, slots=True)
class Request:
    """Texts that continue one prompt.

    Attributes:
        model: Name of the model.
        prompt_ids: At least one token.
        samplings: One for each text.
        hear: Receives every event; called in the queue's thread.
        is_cancelled: Set by whoever does not want the rest.
    """

    model: str
    prompt_ids: Sequence[int]
    samplings: Sequence[Sampling]
    hear: Callable[[Event], None]
    is_cancelled: bool = False

    @property
    def most_tokens(self) -> int:
        """Of all its texts together, at their longest."""
        return sum(len(self.prompt_ids) + sampling.max_new_tokens for sampling in self.samplings)


@dataclass(eq=False, slots=True)
class _Prompt:
    """A prompt that is being read."""

    request: Request
    text: KeptText
    done: int = 0


@dataclass(eq=False, slots=True)
class _Text:
    """A text that is being written; ``last`` is the token to be read next."""

    request: Request
    index: int
    text: KeptText
    continuation: Continuation
    last: int = field(default=-1)


class TextQueue:
    """Writes texts; ``serve`` runs in a thread of its own until ``close``.

    Args:
        reader: Reads texts.
        models: Swaps models in.
        tokenizer: Of all models.
        bytes_per_token: Of the keys and values of one token.
        memory_bytes: What keys and values may take.
    """

    def __init__(
        self, reader: Reader, models: ServedModels, tokenizer: BundleTokenizer, bytes_per_token: int, memory_bytes: int
    ) -> None:
        self._reader, self._models, self._tokenizer = reader, models, tokenizer
        self._bytes_per_token, self._memory_bytes = bytes_per_token, memory_bytes
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._prompts: list[_Prompt] = []
        self._texts: list[_Text] = []
        self._model: str | None = None
        self._turns = 0
        self._is_closed = False

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn; may be called from any thread.

        Raises:
            ResourceError: Its texts would not fit the memory even alone.
            QueueFull: Too many requests wait.
        """
        needed = self._bytes_of(request)
        if needed > self._memory_bytes or len(request.samplings) > MOST_TEXTS:
            raise ResourceError(
                f"{len(request.samplings)} texts of up to {request.most_tokens // len(request.samplings)} tokens",
                needed=f"at most {MOST_TEXTS} texts that fit {format_bytes(self._memory_bytes)} of keys and values; "
                f"these take up to {format_bytes(needed)}",
                next_step="ask for fewer tokens or texts, or start zo-device serve with a larger --memory-budget",
                param="max_tokens",
            )
        with self._changed:
            if len(self._waiting) >= MOST_WAITING or self._is_closed:
                raise QueueFull(
                    f"{len(self._waiting)} requests wait",
                    needed=f"fewer than {MOST_WAITING}",
                    next_step="try again later",
                )
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Write no more of a request's texts; may be called from any thread."""
        with self._changed:
            request.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End ``serve`` after the turn that is being computed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def serve(self) -> None:
        """Write texts until ``close``."""
        while True:
            with self._changed:
                self._drop_cancelled()
                while not (self._is_closed or self._waiting or self._prompts or self._texts):
                    self._changed.wait()
                    self._drop_cancelled()
                if self._is_closed:
                    return
                model = self._next_model()
                self._begin_requests(model)
            self._take_turn(model)

    def _drop_cancelled(self) -> None:
        self._waiting = deque(request for request in self._waiting if not request.is_cancelled)
        self._prompts = [prompt for prompt in self._prompts if not prompt.request.is_cancelled]
        self._texts = [text for text in self._texts if not text.request.is_cancelled]

    def _next_model(self) -> str:
        """Return whose turn it is: the current model's, until another one has waited long enough."""
        begun = [each.request.model for each in self._begun()]
        with_work = {*begun, *(request.model for request in self._waiting if self._fits(request))}
        names = [served.name for served in self._models.all]
        start = names.index(self._model) if self._model is not None else -1
        if self._model in with_work and (self._turns < TURNS_OF_A_MODEL or len(with_work) == 1):
            self._turns += 1
            return names[start]
        self._turns = 0
        rotated = names[start + 1 :] + names[: start + 1]
        self._model = next(name for name in rotated if name in with_work)
        return self._model

    def _begin_requests(self, model: str) -> None:
        for request in [request for request in self._waiting if request.model == model]:
            if not self._fits(request):
                return  # who came later must not overtake for ever
            self._waiting.remove(request)
            self._prompts.append(_Prompt(request, self._reader.begin()))

    def _begun(self) -> list[_Text | _Prompt]:
        return [*self._texts, *self._prompts]

    def _fits(self, request: Request) -> bool:
        begun = {id(each.request): each.request for each in self._begun()}.values()
        count = sum(len(other.samplings) for other in begun) + len(request.samplings)
        held = sum(map(self._bytes_of, begun)) + self._bytes_of(request)
        return count <= MOST_TEXTS and held <= self._memory_bytes

    def _bytes_of(self, request: Request) -> int:
        return int(request.most_tokens * self._bytes_per_token * _ROOM)

    def _take_turn(self, model: str) -> None:
        texts = [text for text in self._texts if text.request.model == model]
        prompt = next((prompt for prompt in self._prompts if prompt.request.model == model), None)
        kept: list[Any] = [text.text for text in texts]
        new_ids: list[Sequence[int]] = [[text.last] for text in texts]
        if prompt is not None:
            ids = prompt.request.prompt_ids
            end = prompt.done + PROMPT_PART_TOKENS if self._reader.reads_in_parts else len(ids)
            kept.append(prompt.text)
            new_ids.append(ids[prompt.done : end])
            prompt.done = min(end, len(ids))
        if not kept:
            return
        try:
            self._models.swap_in(model)
            logits = self._reader.read(kept, new_ids)
        except Exception as error:
            self._fail({text.request for text in texts} | ({prompt.request} if prompt else set()), error)
            return
        if prompt is not None and prompt.done == len(prompt.request.prompt_ids):
            self._prompts.remove(prompt)
            texts += self._begin_texts(prompt)
        for number, text in enumerate(texts):
            self._advance(text, logits[min(number, len(kept) - 1)])

    def _begin_texts(self, prompt: _Prompt) -> list[_Text]:
        """Return the texts that continue a prompt; all but the first on copies of its keys and values."""
        request, stop_ids = prompt.request, self._tokenizer.eos_ids
        begun = [
            _Text(request, index, prompt.text.copy() if index else prompt.text,
                  Continuation(self._tokenizer, sampling, stop_ids))
            for index, sampling in enumerate(request.samplings)
        ]  # fmt: skip
        self._texts += begun
        return begun

    def _advance(self, text: _Text, logits: Any) -> None:
        try:
            piece = text.continuation.take(logits)
        except ZoError as error:
            self._fail({text.request}, error)
            return
        if piece.finish_reason is not None:
            self._texts = [other for other in self._texts if other is not text]
        else:
            text.last = text.continuation.ids[-1]
        if not text.request.is_cancelled:
            text.request.hear(Written(text.index, piece))

    def _fail(self, requests: set[Request], error: Exception) -> None:
        failure = error if isinstance(error, ZoError) else _described(error)
        with self._changed:
            for request in requests:
                request.is_cancelled = True
            self._drop_cancelled()
        for request in requests:
            request.hear(failure)


def _described(error: Exception) -> ZoError:
    """Return an error that nobody expected; its text may quote a person's data, so its kind alone is told."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return ResourceError(
            "memory ran out",
            needed="memory for the texts of this request",
            next_step="ask for fewer tokens, or start zo-device serve with a smaller --memory-budget",
        )
    return ZoError(f"unexpected {type(error).__name__}", next_step="set ZO_DEVICE_DEBUG=1 to see where")
