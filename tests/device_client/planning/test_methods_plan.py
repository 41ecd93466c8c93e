"""What is planned for each method against the values and the passes that it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from live_bytes import LiveBytes
from tiny_bundle import TinyBundle

from device_client.cli import main
from device_client.model.loader import load_model
from device_client.model.methods import tuned_by
from device_client.model.token_batch import TokenBatch
from device_client.planning.memory_plan import plan_memory
from device_client.planning.methods import METHODS, MethodName, tuned_part
from device_client.planning.pass_memory import hungriest_moment
from device_client.planning.workload import Workload
from device_client.tasks.scoring import target_log_probabilities
from shared.errors import InvalidRequest

ROWS, COLUMNS = 64, 59  # behind a prefix, a text fills the context of 64
OTHERS: list[MethodName] = ["lora", "prefix"]


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"intermediate_size": 200}),
        ("opt", {"ffn_dim": 200}),
        ("gemma2", {"intermediate_size": 200}),
        ("gpt2", {"n_inner": 200}),
    ],
)
def test_planned_activations_are_the_bytes_alive_at_the_peak(
    case_of: Callable, model_type: str, changes: dict[str, int], method: MethodName, points: int
) -> None:
    model = load_model(case_of(model_type, **changes).bundle, device="cpu")
    tuned = tuned_by(tuned_part(model.config, method), model, model)
    tuned.write_points([tuned.initial_theta()] * points)
    ids = torch.zeros(ROWS, COLUMNS, dtype=torch.int64)
    batch = TokenBatch(ids, torch.ones_like(ids), torch.tensor([0]), torch.tensor([COLUMNS - 1]))
    live = LiveBytes()

    with live:
        target_log_probabilities(tuned.logits(batch), torch.zeros(1, 1, dtype=torch.int64))

    shape = Workload(ROWS, COLUMNS, points=points, method=method)
    assert 0.97 * live.peak < sum(hungriest_moment(model.config.architecture, shape, 4)) < 1.35 * live.peak


@pytest.mark.parametrize("method", OTHERS)
def test_the_plan_counts_the_values_of_the_method(case_of: Callable, method: MethodName) -> None:
    config = case_of().bundle.config
    sparse = plan_memory(config, Workload(4, 10, points=2, queries=1), device_type="cpu", backend="reference")

    plan = plan_memory(
        config, Workload(4, 10, points=2, queries=1, method=method), device_type="cpu", backend="reference"
    )

    count, own = tuned_part(config, method).value_count, config.sensitive_count
    assert plan.parts["values of the method"] == 2 * count * 4  # at both points, in the compute dtype
    assert plan.parts["theta and z"] == 4 * (5 * count + own)  # three θ, z and the next z; and the bundle's own values
    assert sparse.parts["theta and z"] == 4 * 5 * own
    assert "values of the method" not in sparse.parts


def test_settings_are_those_of_the_paper() -> None:
    assert {name: dict(method.recorded) for name, method in METHODS.items()} == {
        "sparse": {},
        "lora": {"rank": 8, "alpha": 16},
        "prefix": {"prefix_length": 5},
    }
    assert {name: method.epsilon for name, method in METHODS.items()} == {"sparse": 1e-3, "lora": 1e-3, "prefix": 1e-2}


def test_upper_blocks_have_factors_of_their_own_and_no_prefix(case_of: Callable) -> None:
    config = case_of(num_hidden_layers=4).bundle.config
    counts = [tuned_part(config, "lora", f"upper:{number}").value_count for number in (1, 2, 4)]
    assert counts == [counts[0], 2 * counts[0], 4 * counts[0]]
    with pytest.raises(InvalidRequest, match="--blocks upper:2 with --method prefix"):
        tuned_part(config, "prefix", "upper:2")


@pytest.mark.parametrize("method", OTHERS)
def test_the_command_predicts_what_a_method_needs(
    tmp_path: Path, tiny_bundle: TinyBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: MethodName,
) -> None:  # fmt: skip
    monkeypatch.setenv("ZO_DEVICE_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny_bundle.layout.root)
    found = {}
    for name in ("sparse", method):
        assert main(["plan", "--method", name, "--device", "cpu", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)

    assert found[method]["method"] == method
    assert found[method]["tuned_values"] > found["sparse"]["tuned_values"] == 14 * 8
    assert found[method]["total_bytes"] > found["sparse"]["total_bytes"]
    assert (found["sparse"]["first_order"] is None, found[method]["first_order"]) == (False, None)
