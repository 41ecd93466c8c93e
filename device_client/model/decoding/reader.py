"""Reads several texts that grow at the same time: new tokens in, the logits after each text's last token out.

    side by side    new tokens of all texts in one pass, of any number each      the plain network, on a CPU; a single
                                                                                 token by the backend's own kernels
    one by one      each text by a decoding of its own                           every other network

A text keeps its keys and values between passes, can be cut back to a beginning that it shares with what is read next,
and can be copied. Costs the passes, and the keys and values of every text. Knows nothing about prompts or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from device_client.model.decoding.direct import can_be_direct
from device_client.model.decoding.growing import GrowingDecoding
from device_client.model.decoding.token_steps import TokenSteps
from device_client.model.sparse_model import SparseModel
from device_client.model.text_network.keys import TextKeys
from device_client.model.text_network.llama import LlamaDecoder

_STEPS_UP_TO_TEXTS = 3
"""Up to so many next tokens, the kernels of one token are faster one after the other than a pass over all of them: with
SmolLM2 a step takes 10 ms, a pass over two tokens 25, over four 36."""


class KeptText(Protocol):
    """What a reader keeps of one text."""

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""

    def cut(self, tokens: int) -> None:
        """Forget what follows so many tokens."""

    def copy(self) -> KeptText:
        """Return the same text, which grows on its own."""


class Reader(Protocol):
    """Reads texts."""

    @property
    def reads_in_parts(self) -> bool:
        """Whether a prompt may come in several passes at no more cost than in one."""

    def begin(self) -> KeptText:
        """Return a text without tokens."""

    def read(self, texts: Sequence[Any], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each text and return the logits after its last one, float32 (texts, vocabulary).

        Args:
            texts: From ``begin`` of this reader.
            new_ids: At least one token for each text.
        """


def reader_of(model: SparseModel) -> Reader:
    """Return what reads texts with a model, at the values that are written when it reads."""
    if isinstance(model.decoder, LlamaDecoder) and model.prefix is None:
        return SideBySideReader(model, model.decoder)
    return OneByOneReader(model)


class SideBySideReader:
    """Reads all texts in one pass.

    Args:
        model: Loaded.
        decoder: Its decoder.
    """

    reads_in_parts = True

    def __init__(self, model: SparseModel, decoder: LlamaDecoder) -> None:
        self._model, self._decoder = model, decoder
        kernels = model.runtime.backend.token_kernels
        has_steps = kernels is not None and model.fused_up_to_tokens > 0 and can_be_direct(decoder, decoder.shape)
        self._steps = TokenSteps(decoder, model.head, model.runtime, kernels) if kernels and has_steps else None

    def begin(self) -> TextKeys:
        """Return a text without tokens."""
        return self._decoder.empty_cache()

    @torch.no_grad()
    def read(self, texts: Sequence[TextKeys], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each text and return the logits after its last one, float32 (texts, vocabulary)."""
        steps = self._steps_for(texts, new_ids)
        if steps is not None:
            with self._model.runtime.fusing(self._model.fused_up_to_tokens):
                tokens = [
                    steps.take(ids[0], text.tokens, text.layers) for text, ids in zip(texts, new_ids, strict=True)
                ]
                return torch.stack(tokens)
        last = torch.tensor([len(ids) for ids in new_ids]).cumsum(0) - 1
        with self._model.runtime.fusing(self._model.fused_up_to_tokens):
            states = self._decoder.read(texts, new_ids)
            logits: Tensor = self._model.head(states[last])
        return logits.float()

    def _steps_for(self, texts: Sequence[TextKeys], new_ids: Sequence[Sequence[int]]) -> TokenSteps | None:
        """Return what computes the next token of so few texts, one after the other, where nothing adds to products."""
        are_next_tokens = all(len(ids) == 1 and text.tokens > 0 for text, ids in zip(texts, new_ids, strict=True))
        is_faster = len(texts) <= _STEPS_UP_TO_TEXTS and are_next_tokens
        return self._steps if is_faster and not self._model.has_additions else None


class OneByOneReader:
    """Reads one text after the other.

    Args:
        model: Loaded.
    """

    reads_in_parts = False

    def __init__(self, model: SparseModel) -> None:
        self._model = model

    def begin(self) -> TextAlone:
        """Return a text without tokens."""
        return TextAlone(self._model)

    def read(self, texts: Sequence[TextAlone], new_ids: Sequence[Sequence[int]]) -> Tensor:
        """Append tokens to each text and return the logits after its last one, float32 (texts, vocabulary)."""
        with self._model.runtime.fusing(self._model.fused_up_to_tokens):
            return torch.stack([text.append(ids).cpu() for text, ids in zip(texts, new_ids, strict=True)])


class TextAlone:
    """A text with a decoding of its own; one that was cut is read again from its beginning.

    Args:
        model: Loaded.
    """

    def __init__(self, model: SparseModel) -> None:
        self._model = model
        self._ids: list[int] = []
        self._decoding: GrowingDecoding | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return len(self._ids)

    def cut(self, tokens: int) -> None:
        """Forget what follows so many tokens."""
        if tokens < len(self._ids):
            self._ids, self._decoding = self._ids[:tokens], None

    def copy(self) -> TextAlone:
        """Return the same text, which grows on its own."""
        other = TextAlone(self._model)
        other._ids = list(self._ids)
        return other

    def append(self, new_ids: Sequence[int]) -> Tensor:
        """Append tokens and return the logits after the last one, float32 (vocabulary,)."""
        self._ids += new_ids
        if self._decoding is None:
            model = self._model
            self._decoding = GrowingDecoding(
                model.decoder, model.head, model.network.config, model.device, model.prefix
            )
            return self._decoding.prefill(self._ids)
        *before, last = new_ids
        for token in before:
            self._decoding.step(token)
        return self._decoding.step(last)
