"""Models of a server: whatever was swapped in before, each run answers as it does alone, and so does the bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_bundle import TinyBundle
from torch import Tensor

from device_client.cli import main
from device_client.model.decoding.reader import reader_of
from device_client.model.open import Machine, open_for_text
from device_client.model.sparse_model import SparseModel
from device_client.serving.models import ServedModels
from device_client.tuning.run_directory import RunDirectory
from device_client.tuning.tuned_values import answer_as_tuned
from shared.bundle.read import Bundle, read_bundle
from shared.errors import NotFound

QUICK = ("--steps", "8", "--batch", "4", "--device", "cpu", "--backend", "reference", "--quiet")
METHODS = {"all": (), "upper": ("--blocks", "upper:1"), "lora": ("--method", "lora"), "prefix": ("--method", "prefix")}
TEXT = [256, 72, 105, 33]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: TinyBundle) -> Bundle:
    return read_bundle(tiny_bundle.layout, tiny_bundle.digest)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: TinyBundle) -> dict[str, RunDirectory]:
    """A run of every method."""
    home = tmp_path_factory.mktemp("methods")
    (home / "bundles").symlink_to(tiny_bundle.layout.root)
    rows = home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"a{i}", "completion": " b"}) + "\n" for i in range(6)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZO_DEVICE_HOME", str(home))
        for name, words in METHODS.items():
            assert main(["tune", "tiny", "--data", str(rows), "--output", str(home / name), *words, *QUICK]) == 0
    return {name: RunDirectory(home / name) for name in METHODS}


def opened(bundle: Bundle, names: list[str]) -> SparseModel:
    return open_for_text(bundle, Machine(device="cpu"), "prefix" if "prefix" in names else "sparse")


def logits(model: SparseModel) -> Tensor:
    reader = reader_of(model)
    return reader.read([reader.begin()], [TEXT])[0].clone()


@pytest.mark.parametrize("names", [["all", "upper", "lora"], list(METHODS)], ids=["plain network", "with a prefix"])
def test_each_model_answers_as_it_does_alone(bundle: Bundle, runs: dict[str, RunDirectory], names: list[str]) -> None:
    alone = {"bundle": logits(opened(bundle, names))}
    for name in names:
        model = opened(bundle, names)
        answer_as_tuned(runs[name], model)
        alone[name] = logits(model)
    served = opened(bundle, names)
    models = ServedModels(served, "bundle", 0, [runs[name] for name in names])

    for _, name in pairwise(_every_order(["bundle", *names])):
        models.swap_in(name)
        assert torch.equal(logits(served), alone[name]), name

    assert all(not torch.equal(alone["bundle"], alone[name]) for name in names)


def _every_order(names: list[str]) -> Iterator[str]:
    """Yield names so that each one comes after each other one."""
    for one in names:
        for other in names:
            yield from (one, other)


def test_a_run_without_best_values_is_refused(bundle: Bundle, runs: dict[str, RunDirectory], tmp_path: Path) -> None:
    empty = RunDirectory(tmp_path / "empty")
    empty.create()
    empty.write_json("config.json", runs["all"].read_config())

    with pytest.raises(NotFound, match="no tuned values"):
        ServedModels(opened(bundle, []), "bundle", 0, [empty])


def test_the_time_of_a_model_is_that_of_its_values(bundle: Bundle, runs: dict[str, RunDirectory]) -> None:
    (own, tuned) = ServedModels(opened(bundle, []), "bundle", 7, [runs["all"]]).all

    assert own.created == 7
    assert time.time() - 3600 < tuned.created <= time.time()
