"""A run's files: private, atomic, and named when damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from device_client.tuning.run_directory import RunDirectory, load_theta
from shared.errors import IntegrityError, NotFound


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "one")
    directory.create()
    return directory


def test_folder_and_files_are_private(run: RunDirectory) -> None:
    run.write_json("config.json", {"a": 1})
    run.append_metric({"kind": "x"})
    run.write_theta("best.safetensors", torch.zeros(3), 5)
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in run.path.iterdir()} == {0o600}
    assert run.name == "one"


def test_theta_comes_back_bit_for_bit(run: RunDirectory) -> None:
    theta = torch.tensor([1e-40, -0.0, 3.14159274, 65504.0])
    run.write_theta("last.safetensors", theta, 123)
    found = run.read_theta("last.safetensors")
    assert found is not None
    assert found.theta.numpy().tobytes() == theta.numpy().tobytes()
    assert found.steps_done == 123


def test_what_an_engine_keeps_beside_theta_comes_back(run: RunDirectory) -> None:
    state = {"first": torch.tensor([0.5, -2.0]), "steps": torch.tensor([7])}
    run.write_theta("last.safetensors", torch.zeros(2), 7, state)
    found = run.read_theta("last.safetensors")
    assert found is not None
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], kept) for name, kept in state.items())
    run.write_theta("last.safetensors", torch.zeros(2), 8)
    again = run.read_theta("last.safetensors")
    assert again is not None
    assert again.state == {}


def test_there_is_no_theta_before_it_is_written(run: RunDirectory) -> None:
    assert run.read_theta("last.safetensors") is None
    with pytest.raises(NotFound, match="no tuned values"):
        load_theta(run.path)


def write_bytes(path: Path) -> None:
    path.write_bytes(b"short")


def write_other_tensor(path: Path) -> None:
    save_file({"weights": torch.zeros(2)}, path, metadata={"steps_done": "1"})


def write_without_steps(path: Path) -> None:
    save_file({"theta": torch.zeros(2)}, path)


def write_half(path: Path) -> None:
    save_file({"theta": torch.zeros(2).half()}, path, metadata={"steps_done": "1"})


def write_nan(path: Path) -> None:
    save_file({"theta": torch.tensor([torch.nan])}, path, metadata={"steps_done": "1"})


@pytest.mark.parametrize("damage", [write_bytes, write_other_tensor, write_without_steps, write_half, write_nan])
def test_damaged_values_are_never_loaded(run: RunDirectory, damage: object) -> None:
    damage(run.path / "best.safetensors")  # type: ignore[operator]
    with pytest.raises(IntegrityError, match=r"best\.safetensors"):
        load_theta(run.path)


def test_a_torn_metric_line_is_cut_before_the_next(run: RunDirectory) -> None:
    assert run.metrics() == []
    run.append_metric({"kind": "a"})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": ')
    assert run.metrics() == [{"kind": "a"}]
    run.append_metric({"kind": "b"})
    assert run.metrics() == [{"kind": "a"}, {"kind": "b"}]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"{", b"[1]", b'{"n": 1}', b'{"kind": "validation", "steps_done": 20, "loss": 1.5}']
)
def test_a_damaged_metric_line_is_named_with_what_to_do(run: RunDirectory, line: bytes) -> None:
    run.append_metric({"kind": "x"})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(IntegrityError, match=r"metrics\.jsonl line 2 is damaged") as caught:
        run.metrics()
    assert "remove that file" in caught.value.next_step


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_json_is_named(run: RunDirectory, content: str) -> None:
    assert run.read_json("config.json") is None
    (run.path / "config.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"config\.json"):
        run.read_json("config.json")
