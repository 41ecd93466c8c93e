"""Families that nobody tests: prepared where that is asked for, refused where a device would compute otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoint import build_checkpoint
from torch import Tensor, nn

from cloud_service.pipeline.model.load_model import load_model, read_outline
from cloud_service.pipeline.model.untested_family import check_computes_as_expected
from cloud_service.pipeline.planning.model_shape import read_config_shape, read_model_shape
from shared.errors import UnsupportedModel


def test_an_untested_family_has_its_blocks_and_linear_weights_found(tmp_path: Path) -> None:
    outline = read_outline(build_checkpoint(tmp_path / "m", "starcoder2"), allow_untested=True)

    assert (outline.block_path, outline.block_count, outline.is_family_tested) == ("model.layers", 2, False)
    assert len(outline.linear_names) == 2 * 6  # q, k, v, o, and the two of a plain MLP
    load_model(outline, device="cpu")


def test_without_permission_it_is_refused_with_the_option_that_gives_it(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "m", "starcoder2")
    for read in (read_outline, read_model_shape):
        with pytest.raises(UnsupportedModel, match="model_type 'starcoder2'") as caught:
            read(folder)
        assert "--allow-untested" in caught.value.next_step


def test_its_plan_comes_from_the_headers_and_needs_them(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "m", "starcoder2")

    shape = read_model_shape(folder, allow_untested=True)

    outline = read_outline(folder, allow_untested=True)
    assert shape.linear_elements == sum(outline.linear_sizes.values())
    with pytest.raises(UnsupportedModel, match="no weights, and a model of the untested family 'starcoder2'"):
        read_config_shape(folder, allow_untested=True)


def test_a_network_that_changes_its_logits_afterwards_is_refused(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "m", "cohere", logit_scale=0.5)
    with pytest.raises(UnsupportedModel, match="not those of its output matrix: something follows it"):
        load_model(read_outline(folder, allow_untested=True), device="cpu")


class Bidirectional(nn.Module):
    """Every token's hidden state is the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def get_decoder(self) -> Any:
        return self.decode

    def decode(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.hidden(input_ids))

    def hidden(self, input_ids: Tensor) -> Tensor:
        return self.embedding(input_ids).mean(1, keepdim=True).expand(-1, input_ids.shape[1], -1)

    def forward(self, input_ids: Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.hidden(input_ids)))


def test_a_network_whose_tokens_see_those_after_them_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModel, match="depend on tokens after it"):
        check_computes_as_expected(Bidirectional())


def test_a_type_of_which_transformers_has_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "m")
    text = (folder / "config.json").read_text().replace('"llama"', '"vit"')
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match="lists no causal language model"):
        read_outline(folder, allow_untested=True)
