"""One way to open a model: planned before it is loaded, refused where it does not fit, the rest for decoded weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from device_client.model.linear import QuantizedSparseLinear
from device_client.model.open import Machine, fit_workload, open_for_text, open_model
from device_client.model.sparse_model import SparseModel
from device_client.planning.memory_plan import plan_generation, plan_memory
from device_client.planning.workload import Workload
from shared.errors import ResourceError

MOST = Workload(8, 32, queries=1)


def test_a_model_is_opened_with_what_was_planned_for_it(case_of: Callable) -> None:
    bundle = case_of().bundle
    machine = Machine(device="cpu", memory_budget_bytes=1 << 30)

    opened = open_model(bundle, machine, MOST)

    assert opened.fit == fit_workload(bundle.config, machine, MOST)
    assert (opened.fit.micro_batch_rows, opened.fit.points_at_once) == (8, 2)
    layer = next(module for module in opened.model.network.modules() if isinstance(module, QuantizedSparseLinear))
    packed_bytes = layer.packed.kept_bytes
    layer.effective_weight()
    assert layer.packed.kept_bytes == packed_bytes + layer.out_features * layer.in_features * 4


def test_what_does_not_fit_is_refused_before_anything_is_loaded(case_of: Callable) -> None:
    bundle = case_of().bundle
    enough = plan_memory(bundle.config, Workload(1, 32), device_type="cpu", backend="reference").total_bytes
    loaded = []

    def load(*_arguments: object, **_options: object) -> SparseModel:
        loaded.append(1)
        raise AssertionError

    with pytest.raises(ResourceError, match="memory budget"):
        open_model(bundle, Machine(device="cpu", memory_budget_bytes=enough - 1), MOST, load=load)
    assert loaded == []


def test_a_text_may_begin_although_its_whole_context_would_not_fit(case_of: Callable) -> None:
    bundle = case_of().bundle
    budget = plan_generation(bundle.config, "cpu", backend="reference").total_bytes - 1

    model = open_for_text(bundle, Machine(device="cpu", memory_budget_bytes=budget))

    assert len(list(model.generate([1, 2], max_new_tokens=3))) == 3


def test_planning_imports_no_torch() -> None:
    script = "import sys, device_client.planning.memory_fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
