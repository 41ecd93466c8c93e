"""Losses of a streamed network: the same batches, so the same bits, as of the whole one, rewritten or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cloud_service.pipeline.evaluation.perplexity import LossSum
from cloud_service.pipeline.evaluation.variants import sum_losses_of_variant
from cloud_service.pipeline.model.load_model import LoadedModel, ModelOutline, load_model, read_outline
from cloud_service.pipeline.model.streamed_model import stream_model
from shared.architecture import FAMILIES

MakeCheckpoint = Callable[..., Path]
ONE_BATCH_AT_A_TIME, ALL_AT_ONCE = 0, 1 << 30


def windows(vocabulary: int) -> list[list[int]]:
    """Windows of falling length: three batches where a token has 20,000 logits, as a batch has 64 MiB of them."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in range(62, 26, -1)]


def outline_of(make_checkpoint: MakeCheckpoint, family: str) -> ModelOutline:
    return read_outline(make_checkpoint(family, vocab_size=20_000))


@dataclass(frozen=True)
class Halved:
    """Half of every linear weight of a block, and of the embedding."""

    model: LoadedModel

    def write_trunk(self) -> None:
        self._write("model.embed_tokens.weight")

    def write_block(self, index: int) -> None:
        for name in self.model.outline.block_linears[index]:
            self._write(name)

    def _write(self, name: str) -> None:
        self.model.parameters[name].data.copy_(self.model.outline.weights.read(name).float() / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_losses_of_the_whole_network(make_checkpoint: MakeCheckpoint, family: str) -> None:
    outline = outline_of(make_checkpoint, family)
    texts = windows(260)
    whole, batches = load_model(outline, device="cpu", dtype=torch.float32), []
    expected = sum_losses_of_variant(whole, texts, after_batch=batches.append)
    streamed = stream_model(outline, dtype=torch.float32)
    seen: list[LossSum] = []
    found = sum_losses_of_variant(streamed, texts, after_batch=seen.append, hidden_bytes=ALL_AT_ONCE)
    assert found == expected
    assert seen == batches
    assert len(batches) == 3


@pytest.mark.parametrize("hidden_bytes", [ONE_BATCH_AT_A_TIME, 4 * 32 * 62 * 20, ALL_AT_ONCE])
def test_the_trunk_is_rewritten_first_and_each_block_when_it_is_read(
    make_checkpoint: MakeCheckpoint, hidden_bytes: int
) -> None:
    outline, texts = outline_of(make_checkpoint, "llama"), windows(260)
    whole, streamed = load_model(outline, device="cpu"), stream_model(outline)
    published = sum_losses_of_variant(whole, texts)
    rewritten = sum_losses_of_variant(whole, texts, rewritten=Halved(whole))
    assert rewritten != published
    assert sum_losses_of_variant(streamed, texts, hidden_bytes=hidden_bytes) == published
    assert sum_losses_of_variant(streamed, texts, rewritten=Halved(streamed), hidden_bytes=hidden_bytes) == rewritten


def test_a_streamed_sum_that_was_stopped_continues_to_the_same_bits(make_checkpoint: MakeCheckpoint) -> None:
    model, texts = stream_model(outline_of(make_checkpoint, "llama")), windows(260)
    seen: list[LossSum] = []
    total = sum_losses_of_variant(model, texts, after_batch=seen.append, hidden_bytes=ALL_AT_ONCE)
    for done in seen:
        assert sum_losses_of_variant(model, texts, done, hidden_bytes=ALL_AT_ONCE) == total
