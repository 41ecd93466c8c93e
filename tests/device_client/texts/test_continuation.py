"""A text token by token: what is chosen, what is shown, and why it ends. Logits are written down by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_bundle import byte_tokenizer_json
from torch import Tensor

from device_client.texts.continuation import Continuation, Piece, Sampling
from shared.bundle.config import TokenizerSettings
from shared.errors import ResourceError
from shared.model.tokenizer import BundleTokenizer

END = 257


@pytest.fixture(scope="module")
def tokenizer() -> BundleTokenizer:
    settings = TokenizerSettings(
        prepend_bos=True, bos_token_id=256, eos_token_ids=[END], pad_token_id=258, context_length=128
    )
    return BundleTokenizer(byte_tokenizer_json(), settings)


def likeliest(token: int) -> Tensor:
    logits = torch.zeros(259)
    logits[token] = 9.0
    return logits


def taken(tokenizer: BundleTokenizer, text: str, sampling: Sampling, *, then: int | None = END) -> list[Piece]:
    """What a model's certain choice of each byte of a text, and then of a token, comes to."""
    continuation = Continuation(tokenizer, sampling, tokenizer.eos_ids)
    pieces = []
    for token in [*tokenizer.encode(text), *([] if then is None else [then])]:
        pieces.append(continuation.take(likeliest(token)))
        if pieces[-1].finish_reason:
            break
    return pieces


def test_a_stop_token_ends_the_text_and_is_not_in_it(tokenizer: BundleTokenizer) -> None:
    pieces = taken(tokenizer, "Hi", Sampling(max_new_tokens=9, seed=0))

    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("H", None), ("i", None), ("", "stop")]


def test_as_many_tokens_as_were_asked_for_end_the_text(tokenizer: BundleTokenizer) -> None:
    pieces = taken(tokenizer, "Hello", Sampling(max_new_tokens=2, seed=0))

    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("H", None), ("e", "length")]


def test_a_stop_string_ends_the_text_before_it(tokenizer: BundleTokenizer) -> None:
    pieces = taken(tokenizer, "one.\n\ntwo", Sampling(max_new_tokens=99, seed=0, stops=["\n\n"]))

    assert "".join(piece.text for piece in pieces) == "one."
    assert pieces[-1].finish_reason == "stop"


def test_a_character_is_shown_once_all_its_bytes_have_come(tokenizer: BundleTokenizer) -> None:
    pieces = taken(tokenizer, "aß€", Sampling(max_new_tokens=99, seed=0))

    assert [piece.text for piece in pieces] == ["a", "", "ß", "", "", "€", ""]


def test_bytes_of_a_character_that_never_ends_come_as_a_replacement_at_the_end(tokenizer: BundleTokenizer) -> None:
    pieces = taken(tokenizer, "a€", Sampling(max_new_tokens=3, seed=0), then=None)

    assert "".join(piece.text for piece in pieces) == "a\ufffd"


def test_probabilities_are_those_of_the_softmax_at_temperature_one(tokenizer: BundleTokenizer) -> None:
    logits = torch.full((259,), -math.inf)
    logits[[65, 66, 67]] = torch.log(torch.tensor([0.5, 0.3, 0.2]))
    sampling = Sampling(max_new_tokens=5, seed=0, temperature=0.0, likeliest=2)
    continuation = Continuation(tokenizer, sampling, [])
    logits = logits.clamp(min=-1e4)

    chosen = continuation.take(logits).chosen

    assert chosen is not None
    assert (chosen.chosen.token, [each.token for each in chosen.likeliest]) == (65, [65, 66])
    found = [chosen.chosen.logprob, *(each.logprob for each in chosen.likeliest)]
    assert found == pytest.approx([math.log(0.5), math.log(0.5), math.log(0.3)], abs=1e-6)


def test_a_seed_repeats_a_text_and_another_one_does_not(tokenizer: BundleTokenizer) -> None:
    def text(seed: int) -> list[int]:
        continuation = Continuation(tokenizer, Sampling(max_new_tokens=30, seed=seed, temperature=1.0), [])
        for _ in range(30):
            continuation.take(torch.zeros(259))
        return continuation.ids

    assert text(1) == text(1) != text(2)


def test_values_that_are_not_finite_are_refused(tokenizer: BundleTokenizer) -> None:
    continuation = Continuation(tokenizer, Sampling(max_new_tokens=5, seed=0), [])

    with pytest.raises(ResourceError, match="not finite"):
        continuation.take(torch.full((259,), math.nan))
