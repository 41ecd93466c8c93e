"""One text that a model continues, token by token: logits in, a piece of text out, until it ends.

    stop      a stop token, or a stop string, which is not part of the text
    length    as many new tokens as were asked for, or as the context has room for

Samples with a generator of its own, so a seed gives the same text whatever runs beside it, up to the last bits of the
logits. Knows nothing about models or about who reads the text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from device_client.model.sampling import choose_token
from device_client.texts.stop_strings import StopStrings
from shared.errors import ResourceError
from shared.model.tokenizer import BundleTokenizer
from shared.perturbation import random_generator

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and where the text ends.

    Attributes:
        max_new_tokens: At least 1.
        seed: Of the generator; used where ``temperature`` is above 0.
        temperature: 0 takes the likeliest token.
        top_p: Samples among the likeliest tokens whose probabilities reach this sum, 0 < top_p ≤ 1.
        stops: Strings that end the text.
        likeliest: Of how many tokens the logarithms of probabilities are wanted at each place; None wants none at all.
    """

    max_new_tokens: int
    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    stops: Sequence[str] = ()
    likeliest: int | None = None


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token and the natural logarithm of its probability, at temperature 1."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """The token that was chosen at one place, and the likeliest ones there."""

    chosen: TokenProbability
    likeliest: list[TokenProbability]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to a text.

    Attributes:
        text: Possibly nothing, while a character or what may be a stop string is not complete.
        chosen: The token; None where it ended the text, or where no probabilities are wanted.
        finish_reason: Why the text has ended; None while it has not.
    """

    text: str
    chosen: Chosen | None
    finish_reason: FinishReason | None


class Continuation:
    """A text in progress.

    Attributes:
        ids: The new tokens so far, without a stop token.

    Args:
        tokenizer: The model's.
        sampling: How tokens are chosen, and where the text ends.
        stop_ids: Tokens that end it.
    """

    def __init__(self, tokenizer: BundleTokenizer, sampling: Sampling, stop_ids: Collection[int]) -> None:
        self.ids: list[int] = []
        self._sampling, self._stop_ids = sampling, stop_ids
        self._generator = random_generator(sampling.seed)
        self._stream = tokenizer.text_stream()
        self._stops = StopStrings(sampling.stops)

    def take(self, logits: Tensor) -> Piece:
        """Choose the next token and return what it adds.

        Args:
            logits: After the last token, float32 (vocabulary,).

        Raises:
            ResourceError: The logits are not finite.
        """
        sampling = self._sampling
        if not bool(logits.isfinite().all()):
            raise ResourceError(
                "the model computes values that are not finite",
                needed="finite logits",
                next_step="--dtype float32, or the values of another run",
            )
        token = choose_token(logits, sampling.temperature, sampling.top_p, self._generator)
        if token in self._stop_ids:
            return Piece(self._rest(), None, "stop")
        self.ids.append(token)
        chosen = None if sampling.likeliest is None else _probabilities(logits, token, sampling.likeliest)
        text = self._stops.push(self._stream.push(token))
        if self._stops.is_stopped:
            return Piece(text, chosen, "stop")
        if len(self.ids) == sampling.max_new_tokens:
            rest = self._rest()
            return Piece(text + rest, chosen, "stop" if self._stops.is_stopped else "length")
        return Piece(text, chosen, None)

    def _rest(self) -> str:
        """Return what the text holds beyond what was handed out: it has ended."""
        return self._stops.push(self._stream.finish()) + self._stops.finish()


def _probabilities(logits: Tensor, token: int, count: int) -> Chosen:
    logprobs = logits.double().log_softmax(0)
    best = logprobs.topk(count)
    likeliest = [
        TokenProbability(int(each), float(value)) for each, value in zip(best.indices, best.values, strict=True)
    ]
    return Chosen(TokenProbability(token, float(logprobs[token])), likeliest)
