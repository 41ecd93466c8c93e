"""A conversation with a model: what was said, and answers that are written piece by piece.

Each question is asked with all that was said before it, as the model's rows are asked. Of that prompt only what differs
from the last one is read anew. Where the context is full, the oldest turns are left out, never the system's. Costs the
passes over new tokens; keys and values of the conversation stay in memory. Knows nothing about terminals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from device_client.model.decoding.reader import reader_of
from device_client.model.sparse_model import SparseModel
from device_client.tasks.prompts import Prompts, Question
from device_client.texts.asking import ask_conversation
from device_client.texts.continuation import Continuation, Sampling
from shared.errors import DataError, InvalidRequest
from shared.model.tokenizer import BundleTokenizer

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer came to.

    Attributes:
        text: The answer.
        tokens: New tokens.
        seconds: From the question to the last token.
        decoding_seconds: From the first token to the last.
        finish_reason: ``stop``, ``length``, or ``stopped`` by who asked.
    """

    text: str
    tokens: int
    seconds: float
    decoding_seconds: float
    finish_reason: str

    @property
    def tokens_per_second(self) -> float:
        """After the first token; the prompt's time is not in it."""
        return (self.tokens - 1) / self.decoding_seconds if self.tokens > 1 and self.decoding_seconds > 0 else 0.0

    @property
    def why(self) -> str:
        """Why it ended, where that is not the end of the turn."""
        return {"length": ", cut: --max-new-tokens", "stopped": ", stopped"}.get(self.finish_reason, "")


class Conversation:
    """Questions and answers.

    Attributes:
        messages: What was said so far.

    Args:
        model: Loaded, at the values that answer.
        prompts: How its rows become tokens.
        system: What the system says first.
    """

    def __init__(self, model: SparseModel, prompts: Prompts, *, system: str | None = None) -> None:
        self.messages: list[dict[str, str]] = []
        self._model, self._prompts = model, prompts
        self._reader = reader_of(model)
        self._text = self._reader.begin()
        self._read_ids: list[int] = []
        self.begin(system=system)

    @property
    def tokenizer(self) -> BundleTokenizer:
        """The model's."""
        return self._model.tokenizer

    def begin(self, *, system: str | None = None) -> None:
        """Begin another conversation.

        Raises:
            InvalidRequest: The model's rows are not conversations, so no system can speak.
        """
        if system is not None and self._prompts.renderer.kind != "messages":
            raise InvalidRequest(
                f"a system message for values that were tuned on {self._prompts.renderer.kind} rows",
                needed="a run that was tuned on conversations",
                next_step="leave --system out",
            )
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def ask(self, text: str, sampling: Sampling, *, warn: Warn) -> Answer:
        """Return the answer to what the user says; it is written as its pieces are taken.

        Args:
            text: What the user says.
            sampling: How tokens are chosen.
            warn: Hears that something was left out.

        Raises:
            DataError: The question alone does not fit the context, or the template refuses the messages.
        """
        said = {"role": "user", "content": text}
        kept, question = self._fitting(said)
        if left_out := len(self.messages) - len(kept):
            warn(f"the conversation no longer fits the context: its {left_out} oldest messages are left out")
        self.messages = [*kept, said]
        room = self._model.tokenizer.context_length - len(question.ids)
        return Answer(self, question.ids, sampling, min(sampling.max_new_tokens, room))

    def _fitting(self, said: dict[str, str]) -> tuple[list[dict[str, str]], Question]:
        """Return the earlier messages that still fit, and the question behind them."""
        if self._prompts.renderer.kind != "messages":
            return [], self._whole(ask_conversation(self._prompts, [said]))
        system = self.messages[:1] if self.messages and self.messages[0]["role"] == "system" else []
        turns = self.messages[len(system) :]
        while True:
            question = ask_conversation(self._prompts, [*system, *turns, said])
            if not question.lost_tokens or not turns:
                return [*system, *turns], self._whole(question)
            turns = turns[2:]

    def _whole(self, question: Question) -> Question:
        if question.lost_tokens:
            context = self._model.tokenizer.context_length
            raise DataError(
                f"a question of {len(question.ids) + question.lost_tokens} tokens",
                needed=f"fewer than {context}, the model's context",
                next_step="say it in fewer words",
            )
        return question

    def read(self, ids: Sequence[int]) -> Any:
        """Return the logits after a prompt, float32 (vocabulary,); what it shares with what was read is kept."""
        shared = next(
            (place for place, (one, other) in enumerate(zip(self._read_ids, ids, strict=False)) if one != other),
            min(len(self._read_ids), len(ids)),
        )
        shared = min(shared, len(ids) - 1)  # at least one token is read: its logits are wanted
        self._text.cut(shared)
        return self._append(ids[shared:], shared)

    def append(self, token: int) -> Any:
        """Return the logits after one more token."""
        return self._append([token], len(self._read_ids))

    def _append(self, ids: Sequence[int], begin: int) -> Any:
        self._read_ids = [*self._read_ids[:begin], *ids]
        try:
            return self._reader.read([self._text], [ids])[0]
        except BaseException:  # interrupted in the middle of the blocks: some hold keys that others lack
            self._text, self._read_ids = self._reader.begin(), []
            raise


class Answer:
    """An answer in the making; ``pieces`` writes it.

    Args:
        conversation: Whose answer it is.
        prompt_ids: All that was said, in tokens.
        sampling: How tokens are chosen.
        room: New tokens at most.
    """

    def __init__(self, conversation: Conversation, prompt_ids: Sequence[int], sampling: Sampling, room: int) -> None:
        self._conversation, self._prompt_ids, self._room = conversation, prompt_ids, room
        tokenizer = conversation.tokenizer
        self._continuation = Continuation(tokenizer, sampling, tokenizer.eos_ids)
        self._text: list[str] = []
        self._finish_reason = ""
        self._times: list[float] = [time.monotonic()]

    def pieces(self) -> Iterator[str]:
        """Yield the answer piece by piece; at its end it has been said."""
        logits = self._conversation.read(self._prompt_ids)
        while not self._finish_reason:
            piece = self._continuation.take(logits)
            self._times.append(time.monotonic())
            self._text.append(piece.text)
            self._finish_reason = piece.finish_reason or ""
            if not self._finish_reason and len(self._continuation.ids) >= self._room:
                self._finish_reason = "length"
            yield piece.text
            if not self._finish_reason:
                logits = self._conversation.append(self._continuation.ids[-1])
        self._say()

    def stop(self) -> None:
        """End the answer where it is."""
        if not self._finish_reason:
            self._finish_reason = "stopped"
            self._say()

    def _say(self) -> None:
        self._conversation.messages.append({"role": "assistant", "content": "".join(self._text)})

    def result(self) -> Answered:
        """Return what the answer came to."""
        begin, first, *_ = self._times if len(self._times) > 1 else [self._times[0]] * 2
        last = self._times[-1]
        return Answered(
            "".join(self._text), len(self._continuation.ids), last - begin, last - first, self._finish_reason
        )
