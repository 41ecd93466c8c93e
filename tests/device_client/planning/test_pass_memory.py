"""The tensors that a forward pass is said to keep alive against those that operations make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes

from device_client.model.loader import load_model
from device_client.model.sparse_model import SparseModel
from device_client.model.token_batch import TokenBatch
from device_client.planning.pass_memory import hungriest_moment
from device_client.planning.workload import Workload
from device_client.tasks.scoring import target_log_probabilities

ROWS, COLUMNS = 64, 60


def peak_bytes(model: SparseModel, points: int, answer_rows: int) -> int:
    """Score the last token of the first rows at several points; return the bytes of the tensors alive at most."""
    ids = torch.zeros(ROWS, COLUMNS, dtype=torch.int64)
    batch = TokenBatch(ids, torch.ones_like(ids), torch.arange(answer_rows), torch.full((answer_rows,), COLUMNS - 1))
    model.write_points([model.initial_theta()] * points)
    live = LiveBytes()
    with live:
        target_log_probabilities(model.logits(batch), torch.zeros(answer_rows, 1, dtype=torch.int64))
    return live.peak


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"intermediate_size": 200}),
        ("mistral", {"intermediate_size": 200}),
        ("qwen3", {"head_dim": 32}),
        ("opt", {}),
        ("opt", {"ffn_dim": 200}),
        ("gpt2", {"n_inner": 200}),
        ("gpt_neox", {"intermediate_size": 200}),
        ("phi3", {"intermediate_size": 200, "rope_scaling": None}),
        ("granite", {"intermediate_size": 200}),
        ("olmo2", {"intermediate_size": 200}),
        ("smollm3", {"intermediate_size": 200}),
        ("stablelm", {"intermediate_size": 200}),
        ("gemma2", {"intermediate_size": 200}),
        ("gemma3_text", {"intermediate_size": 200}),
    ],
)
def test_planned_activations_are_the_bytes_alive_at_the_peak(
    case_of: Callable, model_type: str, changes: dict[str, int], dtype: torch.dtype, points: int
) -> None:
    model = load_model(case_of(model_type, **changes).bundle, device="cpu", compute_dtype=dtype)

    found = peak_bytes(model, points, answer_rows=1)

    workload = Workload(ROWS, COLUMNS, points=points)
    planned = sum(hungriest_moment(model.config.architecture, workload, dtype.itemsize))
    # Left out: rotary tables and ids, under 3 % here. Where attention or norms dominate up to 4K too much is counted.
    assert 0.97 * found < planned < 1.22 * found


@pytest.mark.parametrize("points", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_many_words_the_logits_are_the_hungriest_moment(
    case_of: Callable, dtype: torch.dtype, points: int
) -> None:
    model = load_model(case_of(vocabulary=20000).bundle, device="cpu", compute_dtype=dtype)

    found = peak_bytes(model, points, answer_rows=ROWS)

    planned = sum(hungriest_moment(model.config.architecture, Workload(ROWS, COLUMNS, points=points), dtype.itemsize))
    logits = points * ROWS * 20000 * 4
    in_the_head = points * ROWS * COLUMNS * 32 * dtype.itemsize + logits + ROWS * 20000 * dtype.itemsize
    assert planned == max(in_the_head, logits + (4 << 20)) == pytest.approx(found, rel=0.02)


def test_scores_beside_many_points_count_one_portion_of_log_softmax() -> None:
    architecture: dict[str, Any] = {
        "model_type": "llama", "hidden_size": 1, "num_attention_heads": 1, "intermediate_size": 1, "vocab_size": 1000,
        "num_hidden_layers": 1, "max_position_embeddings": 8,
    }  # fmt: skip

    moment = hungriest_moment(architecture, Workload(1, 1, answers_per_row=500, points=8), 2)

    # 8 · 500 · 1000 float32 logits and 4 MiB; in the head there are only 500 · 1000 values of 16 bit beside them.
    assert moment == [16_000_000, 4 << 20]
