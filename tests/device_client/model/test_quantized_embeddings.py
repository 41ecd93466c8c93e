"""A quantised embedding and head: the function of the decoded weights, from the codes alone, whatever computes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_bundle import random_quantized
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.names import BackendName
from device_client.model.backends.planned_bytes import planned_backend
from device_client.model.backends.reference.backend import ReferenceBackend
from device_client.model.embeddings import QuantizedEmbedding, QuantizedHead
from device_client.model.linear import LinearRuntime, SensitiveValues
from device_client.model.loader import build_skeleton, load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.planning.memory_plan import weight_parts
from shared.errors import UnsupportedModel
from shared.quantization.codec import QuantizedTensor

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "opt"]
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}
"""Sums of 32 products in two orders, through two blocks."""

HIDDEN, VOCABULARY = 24, 5000


def batch_of(columns: int, rows: int = 2) -> TokenBatch:
    """Random rows whose logits are wanted at every second position."""
    ids = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (rows, columns)))
    wanted = torch.ones(rows, columns, dtype=torch.int64).nonzero()[::2]
    return TokenBatch(ids, torch.ones_like(ids), wanted[:, 0], wanted[:, 1])


def table_of(bits: int, group_size: int = HIDDEN) -> QuantizedTensor:
    """Random uniform codes of a vocabulary that is no multiple of a tile."""
    drawn = random_quantized((VOCABULARY, HIDDEN), "uniform", bits, torch.Generator().manual_seed(1))
    parts = {"scale": drawn.scale, "bias": drawn.bias} if group_size == HIDDEN else {}
    return dataclasses.replace(drawn, group_size=group_size, **parts)


def head_of(table: QuantizedTensor, points: int = 1, bias: Tensor | None = None) -> QuantizedHead:
    """A head on the reference backend, whose buffer holds one tile."""
    backend = ReferenceBackend([(2048, HIDDEN)], torch.float32, torch.device("cpu"))
    values = SensitiveValues(torch.empty(0))
    values.write([torch.empty(0)] * points)
    return QuantizedHead(backend.pack_table(table), bias, LinearRuntime(backend, values))


def decoded_by_hand(table: QuantizedTensor) -> Tensor:
    """code · scale + bias of codes that fill whole bytes or halves of them, in float64."""
    codes = table.codes.double()
    if table.bits == 4:
        codes = torch.stack([table.codes & 15, table.codes >> 4], dim=2).flatten(1).double()
    assert table.scale is not None
    assert table.bias is not None
    return codes * table.scale.double() + table.bias.double()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_equal_a_plain_model_with_the_decoded_embedding_and_head(
    case_of: Callable, model_type: str, bits: int
) -> None:
    case = case_of(model_type, embedding_bits=bits)
    batch = batch_of(12)
    with torch.no_grad():
        expected = case.reference(batch.input_ids).logits[batch.logit_rows, batch.logit_columns]

    logits = load_model(case.bundle, device="cpu").logits(batch)[0]

    torch.testing.assert_close(logits, expected, **ROUNDING)


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "opt"])
def test_generating_chooses_the_plain_models_tokens(
    case_of: Callable, kernels: Path, model_type: str, name: BackendName
) -> None:
    case = case_of(model_type, embedding_bits=8)
    model = load_model(case.bundle, device="cpu", backend=BackendOptions(name, kernels))
    model.fused_up_to_tokens = 4
    prompt = [256, 5, 17, 80]
    text = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            text.append(int(case.reference(torch.tensor([text])).logits[0, -1].argmax()))

    assert list(model.generate(prompt, max_new_tokens=12)) == text[len(prompt) :]


@pytest.mark.parametrize("bits", [8, 4])
def test_backends_compute_the_same_bits(case_of: Callable, kernels: Path, bits: int) -> None:
    bundle = case_of(embedding_bits=bits).bundle
    reference = load_model(bundle, device="cpu")
    native = load_model(bundle, device="cpu", backend=BackendOptions("native", kernels))

    assert torch.equal(native.logits(batch_of(9)), reference.logits(batch_of(9)))


def test_several_points_give_the_bits_of_each_alone(case_of: Callable) -> None:
    model = load_model(case_of("mistral", embedding_bits=8).bundle, device="cpu")
    thetas = [model.initial_theta() + offset for offset in (0.5, -0.5)]
    model.write_points(thetas)
    together = model.logits(batch_of(12))

    for theta, at_point in zip(thetas, together, strict=True):
        model.write_theta(theta)
        assert torch.equal(model.logits(batch_of(12))[0], at_point)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_look_up_returns_the_decoded_rows(bits: int) -> None:
    table = table_of(bits)
    ids = torch.tensor([[0, 4999, 7], [7, 7, 1]])

    rows = QuantizedEmbedding(table, torch.float32)(ids)

    torch.testing.assert_close(rows.double(), decoded_by_hand(table)[ids], rtol=1e-6, atol=1e-7)


def test_a_factor_multiplies_what_was_rounded_to_the_compute_dtype() -> None:
    table = table_of(8)
    plain = QuantizedEmbedding(table, torch.float16)(torch.arange(9))

    scaled = QuantizedEmbedding(table, torch.float16, factor=5.65685)(torch.arange(9))

    assert torch.equal(scaled, plain * torch.tensor(5.65685).half())


@pytest.mark.parametrize("tokens", [1, 64, 65, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_head_multiplies_with_what_the_codes_stand_for(tokens: int, has_bias: bool) -> None:
    table = table_of(8)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(VOCABULARY, generator=generator) if has_bias else None
    stacked = torch.randn(2, tokens, HIDDEN, generator=generator)

    logits = head_of(table, 2, bias).write_logits(stacked, torch.empty(2, tokens, VOCABULARY))

    expected = stacked.double() @ decoded_by_hand(table).T
    torch.testing.assert_close(logits.double(), expected if bias is None else expected + bias, rtol=1e-4, atol=1e-5)


def test_the_fused_product_of_plain_torch_needs_no_room_for_the_whole_head() -> None:
    table = table_of(8)
    head = head_of(table)
    hidden = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(4))

    with head._runtime.fusing(4):
        logits = head(hidden)

    torch.testing.assert_close(logits.double(), hidden.double() @ decoded_by_hand(table).T, rtol=1e-4, atol=1e-5)


def embedding_and_head(model: SparseModel) -> tuple[Any, Any]:
    network: Any = model.network
    return network.get_input_embeddings(), network.get_output_embeddings()


def test_tied_embeddings_share_one_tensor_and_untied_ones_do_not(case_of: Callable) -> None:
    embedding, head = embedding_and_head(load_model(case_of("llama", embedding_bits=8).bundle, device="cpu"))
    assert embedding.table.codes.data_ptr() == head.packed.quantized.codes.data_ptr()

    embedding, head = embedding_and_head(load_model(case_of("mistral", embedding_bits=8).bundle, device="cpu"))
    assert embedding.table.codes.data_ptr() != head.packed.quantized.codes.data_ptr()


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_no_tensor_of_the_loaded_model_is_a_decoded_embedding(case_of: Callable, model_type: str) -> None:
    model = load_model(case_of(model_type, embedding_bits=8).bundle, device="cpu")

    assert all(parameter.shape != (259, 32) for parameter in model.network.parameters())
    assert model.runtime.backend.workspace_bytes < 2 * 259 * 32 * 4 + (1 << 20)


def test_theta_is_that_of_the_blocks_alone(case_of: Callable) -> None:
    plain, quantised = (load_model(case_of(embedding_bits=bits).bundle, device="cpu") for bits in (16, 8))

    assert quantised.sensitive_count == plain.sensitive_count == 84
    assert list(quantised.tensor_slices) == list(plain.tensor_slices)


def test_the_memory_plan_counts_codes_scales_and_the_starts_of_rows(case_of: Callable) -> None:
    reference = planned_backend("reference", "cpu", 4)
    plain, quantised = (weight_parts(case_of(embedding_bits=bits).bundle.config, 4, reference) for bits in (16, 8))

    assert quantised["codes"] - plain["codes"] == 259 * 32
    assert quantised["codebooks and scales"] - plain["codebooks and scales"] == 259 * 2 * 2 * 2
    assert plain["unquantised parameters"] - quantised["unquantised parameters"] == 259 * 32 * 4
    assert quantised["sensitive indices and values"] - plain["sensitive indices and values"] == 260 * 4


def test_a_norm_in_the_trunk_must_not_be_quantised(case_of: Callable) -> None:
    config = case_of(embedding_bits=8).bundle.config
    moved = config.block_tensors[0].model_copy(update={"blob": "trunk.safetensors", "sensitive_count": 0})
    others = [entry for entry in config.tensors if entry.name != moved.name]

    with pytest.raises(UnsupportedModel, match="neither embedding nor head"):
        build_skeleton(config.model_copy(update={"tensors": [*others, moved]}))
