"""What is planned for upper blocks against the bytes that their passes and their values take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from live_bytes import LiveBytes

from device_client.model.backends.planned_bytes import planned_backend
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.token_batch import TokenBatch
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.memory_plan import KEPT_STATES, plan_memory, weight_parts
from device_client.planning.pass_memory import hungriest_moment
from device_client.planning.tuned_blocks import tuned_blocks
from device_client.planning.workload import Workload
from device_client.tasks.scoring import target_log_probabilities

ROWS, COLUMNS = 64, 60


def batch_of_rows() -> TokenBatch:
    ids = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % 250
    return TokenBatch(ids, torch.ones_like(ids), torch.tensor([0]), torch.tensor([COLUMNS - 1]))


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"intermediate_size": 200}),
        ("opt", {"ffn_dim": 200}),
        ("gemma2", {"intermediate_size": 200}),
        ("gpt2", {"n_inner": 200}),
    ],
)
def test_a_pass_over_upper_blocks_takes_what_is_planned_for_a_pass(
    case_of: Callable, model_type: str, changes: dict[str, int], points: int
) -> None:
    model = load_model(case_of(model_type, **changes).bundle, device="cpu")
    held_bytes = ROWS * COLUMNS * 32 * 4
    upper = UpperBlocks(model, tuned_blocks(model.config, "upper:1"), KeptStates(0), held_bytes=held_bytes)
    upper.write_points([upper.initial_theta()] * points)
    batch = batch_of_rows()
    upper.logits(batch)  # what enters the upper blocks is held from now on
    live = LiveBytes()

    with live:
        target_log_probabilities(upper.logits(batch), torch.zeros(1, 1, dtype=torch.int64))

    planned = sum(hungriest_moment(model.config.architecture, Workload(ROWS, COLUMNS, points=points), 4))
    assert 0.97 * live.peak < planned < 1.3 * live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_values_are_the_bundles_own_and_the_tuned_ones_of_each_point(
    case_of: Callable, dtype: torch.dtype
) -> None:
    config = case_of(num_hidden_layers=3, sensitive=20).bundle.config
    upper = tuned_blocks(config, "upper:1")

    backend = planned_backend("reference", "cpu", dtype.itemsize)
    parts = weight_parts(config, dtype.itemsize, backend, points=4, tuned=upper)
    without_values = weight_parts(config, dtype.itemsize, backend, points=0)

    assert (config.sensitive_count, upper.value_count) == (3 * 140, 140)
    values = (3 * 140 + 4 * 140) * dtype.itemsize
    assert parts["sensitive indices and values"] == without_values["sensitive indices and values"] + values


def test_the_plan_counts_theta_and_states_of_the_tuned_blocks_alone(case_of: Callable) -> None:
    config = case_of(num_hidden_layers=3).bundle.config
    shape = Workload(4, 10, queries=2, blocks="upper:1", entering_tokens=40, kept_tokens=300)

    plan = plan_memory(config, shape, device_type="cpu")
    whole = plan_memory(config, Workload(4, 10, queries=2), device_type="cpu")

    assert plan.parts[KEPT_STATES] == 340 * 32 * 4
    assert plan.parts["theta and z"] * 3 == whole.parts["theta and z"]
    assert KEPT_STATES not in whole.parts
