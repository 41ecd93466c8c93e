"""``zo-cloud plan``, and the budgets on their way from options to a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_checkpoint import build_checkpoint, write_text

from cloud_service.cli import main
from cloud_service.commands.memory_options import memory_budget
from cloud_service.jobs.messages import JobOrder
from cloud_service.memory_budget import MemoryBudget
from cloud_service.pipeline.named_input import NamedInput
from cloud_service.pipeline.planning.input_plan import plan_input, workload_of
from cloud_service.pipeline.planning.machine_probe import (
    accelerator_indices,
    available_host_bytes,
    probe_machine,
)
from cloud_service.pipeline.planning.model_shape import read_model_shape
from cloud_service.settings import load_settings
from shared.api import PrepareRequest, QuantizerSpec
from shared.errors import InvalidRequest

GIB = 1 << 30
SEVEN_BILLION = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def seven_billion(tmp_path: Path) -> Path:
    """A folder with the configuration of Llama-2-7B and no weights."""
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SEVEN_BILLION))
    return folder


def plan_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["plan", *words, "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_a_7b_model_is_planned_for_accelerators_that_are_not_here(
    seven_billion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--accelerators", "1", "--max-host-bytes", "128GiB", "--max-accelerator-bytes")
    passes = {}
    for size in ("24GiB", "40GiB", "80GiB"):
        plan = plan_json(capsys, str(seven_billion), *words, size)
        assert plan["accelerator_bytes"] <= int(size[:2]) * GIB  # type: ignore[operator]
        passes[size] = (len(plan["passes"]), plan["recomputes_activations"])  # type: ignore[arg-type]
    assert passes["80GiB"] == (1, False)
    assert passes["40GiB"] == (1, True)
    assert passes["24GiB"][0] > 1


def test_the_plan_is_a_table_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = build_checkpoint(tmp_path / "tiny")
    # A plan counts what this process holds already, which grows with the tests before this one.
    assert main(["plan", str(folder), "--sequences", "16", "--max-host-bytes", "8GiB"]) == 0
    text = capsys.readouterr().out
    assert "16 sequences of 64 tokens" in text  # the context of the tiny model
    assert "one pass over all blocks" in text
    assert "Fisher sums in main memory" in text
    assert "time (about)" in text
    assert "quantizing" in text


def test_sums_on_an_accelerator_are_beside_the_weights(seven_billion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(seven_billion), "--accelerators", "1", "--max-accelerator-bytes", "80GiB"]) == 0
    assert "Fisher sums beside the weights" in capsys.readouterr().out


def test_a_budget_nothing_fits_ends_with_the_status_of_too_little_memory(
    seven_billion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(seven_billion), "--accelerators", "1", "--max-accelerator-bytes", "8GiB"]) == 8
    assert "at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--accelerators", "1"], "--max-accelerator-bytes"),
        (["--accelerators", "0", "--max-accelerator-bytes", "8GiB"], "at least 1"),
        (["--max-host-bytes", "8 gigs"], "8GiB, 500MB"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "foo"], "device 'foo'"),
        (["--device", "cpu:1"], "device 'cpu:1'"),
    ],
)
def test_a_wrong_call_says_what_is_needed(
    seven_billion: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["plan", str(seven_billion), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_size_names_the_option_and_no_other_command(
    seven_billion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(seven_billion), "--max-host-bytes", "8 gigs"]) == 2
    shown = capsys.readouterr().err
    assert "--max-host-bytes: size '8 gigs'" in shown
    assert "serve" not in shown
    assert "Value error" not in shown


def test_a_preparation_takes_the_device_that_was_planned_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = build_checkpoint(tmp_path / "tiny"), write_text(tmp_path / "text.jsonl")
    words = ["prepare", str(folder), "--output", str(tmp_path / "out"), "--calibration-text", str(text), "--quiet"]
    assert main([*words, "--device", "cuda:99"]) == 2
    assert "device 'cuda:99'" in capsys.readouterr().err


def test_sizes_are_read_from_the_environment_and_reach_the_jobs_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZO_CLOUD_MAX_ACCELERATOR_BYTES", "24GiB")
    monkeypatch.setenv("ZO_CLOUD_MAX_HOST_BYTES", "1000000000")
    settings = load_settings()
    assert (settings.max_accelerator_bytes, settings.max_host_bytes) == (24 * GIB, 10**9)
    order = JobOrder(request=PrepareRequest(model="tiny"), max_accelerator_bytes=24 * GIB)
    sent = JobOrder.model_validate_json(order.model_dump_json())
    assert (sent.max_accelerator_bytes, sent.max_host_bytes) == (24 * GIB, None)


def test_an_option_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    monkeypatch.setenv("ZO_CLOUD_MAX_HOST_BYTES", "8GiB")
    given = argparse.Namespace(max_accelerator_bytes=None, max_host_bytes="4GiB")
    assert memory_budget(given) == MemoryBudget(None, 4 * GIB)


def test_the_machine_is_measured_within_the_budget(tmp_path: Path) -> None:
    machine = probe_machine(
        device="cpu", budget=MemoryBudget(max_host_bytes=GIB), folder=tmp_path, quantizer=QuantizerSpec(method="rtn")
    )
    assert machine.accelerator_budgets == ()
    assert machine.host_budget == min(GIB, available_host_bytes())
    assert machine.host_baseline > 0
    assert min(getattr(machine.rates, name) for name in machine.rates.__slots__) > 0
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_no_cpu_and_no_cuda_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="mps"):
        accelerator_indices("mps")
    assert accelerator_indices("cpu") == ()
    assert accelerator_indices("cpu:0") == ()


def test_a_request_is_planned_with_its_own_settings(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "tiny")
    request = PrepareRequest.model_validate(
        {
            "model": str(folder),
            "calibration": {"sequences": 10, "tokens_per_sequence": 512},
            "evaluation": {"documents": 3},
            "quantizer": {"method": "lut", "compensation": "gptq"},
        }
    )
    plan = plan_input(
        NamedInput.of_preparation(request), read_model_shape(folder), MemoryBudget(), device="cpu", workspace=tmp_path
    )
    assert plan.passes == ((0, 1),)
    workload = workload_of(NamedInput.of_preparation(request), read_model_shape(folder))
    assert (workload.sequences, workload.tokens, workload.shards) == (10, 64, 10)  # the model's context is 64
    assert (workload.evaluation_tokens, workload.compensates) == (3 * 64, True)
