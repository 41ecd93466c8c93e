"""Upper blocks over hidden states that are computed once per row: the whole model's logits, always the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_rows
import torch
from torch import Tensor

from device_client.model.backends.choose import BackendOptions
from device_client.model.kept_states import KeptStates
from device_client.model.loader import load_model
from device_client.model.upper_blocks import UpperBlocks
from device_client.planning.tuned_blocks import tuned_blocks
from shared.architecture import FAMILIES
from shared.bundle.read import Bundle

# One float32 forward of tiny blocks: rows alone are added up in another order than rows side by side.
FLOAT32_FORWARD = {"rtol": 1e-5, "atol": 2e-5}
ROWS = [np.random.default_rng(length).integers(4, 250, length).tolist() for length in (5, 12, 7)]
PLENTY = 1 << 20


batch_of = partial(token_rows.batch_of, padding=0)


def upper_of(bundle: Bundle, blocks: str, kept: KeptStates | None = None, **options: Any) -> UpperBlocks:
    model = load_model(bundle, device="cpu", **options)
    return UpperBlocks(model, tuned_blocks(bundle.config, blocks), KeptStates(PLENTY) if kept is None else kept)


def both_signs(theta: Tensor) -> list[Tensor]:
    z = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1))
    return [theta + z * 0.1, theta - z * 0.1]


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_upper_blocks_give_the_logits_of_the_whole_model(case_of: Callable, model_type: str) -> None:
    bundle = case_of(model_type).bundle
    upper = upper_of(bundle, "upper:1")
    whole = load_model(bundle, device="cpu")
    first = whole.sensitive_count - upper.sensitive_count
    points = both_signs(upper.initial_theta())

    upper.write_points(points)
    whole.write_points([torch.cat([whole.initial_theta()[:first], point]) for point in points])

    assert 0 < first < whole.sensitive_count
    batch = batch_of(ROWS)
    torch.testing.assert_close(upper.logits(batch), whole.logits(batch), **FLOAT32_FORWARD)
    assert not torch.equal(*upper.logits(batch))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_upper_blocks_may_be_tuned(case_of: Callable, count: int) -> None:
    bundle = case_of(num_hidden_layers=4).bundle
    upper = upper_of(bundle, f"upper:{count}")
    batch = batch_of(ROWS)

    upper.write_points([upper.initial_theta()])

    assert upper.sensitive_count == 7 * 6 * count  # seven weights of six values in each block
    torch.testing.assert_close(upper.logits(batch), load_model(bundle, device="cpu").logits(batch), **FLOAT32_FORWARD)


@pytest.mark.parametrize("model_type", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("backend", ["reference", "native"])
def test_kept_dropped_and_computed_again_are_the_same_bits(
    case_of: Callable, kernels: Path, tmp_path: Path, model_type: str, backend: str
) -> None:
    bundle = case_of(model_type).bundle
    batch = batch_of(ROWS)
    options = {"backend": BackendOptions(backend, kernels)}  # type: ignore[arg-type]
    found = []
    with KeptStates(0, tmp_path, PLENTY) as in_file:
        for kept in (KeptStates(0), KeptStates(PLENTY), in_file):
            upper = upper_of(bundle, "upper:1", kept, **options)
            upper.write_points(both_signs(upper.initial_theta()))
            found += [upper.logits(batch), upper.logits(batch)]
            upper.write_points(both_signs(upper.initial_theta())[:1])  # one point alone
            assert torch.equal(upper.logits(batch)[0], found[0][0])

    assert all(torch.equal(logits, found[0]) for logits in found)


def test_what_enters_the_tuned_blocks_does_not_depend_on_the_rows_beside_it(case_of: Callable) -> None:
    bundle = case_of().bundle
    together, alone = KeptStates(PLENTY), KeptStates(PLENTY)

    upper_of(bundle, "upper:1", together).logits(batch_of(ROWS))
    upper = upper_of(bundle, "upper:1", alone)
    for row in ROWS:
        upper.logits(batch_of([row]))

    for row in ROWS:
        first, second = together.get(row), alone.get(row)
        assert first is not None
        assert second is not None
        assert first.shape == (len(row), 32)
        assert torch.equal(first, second)


def test_rows_that_are_not_kept_are_computed_once_for_all_passes_of_a_step(case_of: Callable) -> None:
    bundle = case_of().bundle
    model = load_model(bundle, device="cpu")
    runs = []
    model.decoder.layers[0].register_forward_hook(lambda *_: runs.append(1))
    held_bytes = 3 * 12 * 32 * 4
    upper = UpperBlocks(model, tuned_blocks(bundle.config, "upper:1"), KeptStates(0), held_bytes=held_bytes)
    batch = batch_of(ROWS)

    for point in both_signs(upper.initial_theta()):
        upper.write_points([point])
        upper.logits(batch)

    assert len(runs) == len(ROWS)


def test_the_model_is_whole_again_after_each_pass(case_of: Callable) -> None:
    bundle = case_of().bundle
    model = load_model(bundle, device="cpu")
    batch = batch_of(ROWS)
    before = model.logits(batch)
    upper = UpperBlocks(model, tuned_blocks(bundle.config, "upper:1"), KeptStates(PLENTY))

    upper.write_points(both_signs(upper.initial_theta()))
    upper.logits(batch)

    assert torch.equal(model.logits(batch), before)


def test_a_theta_of_another_length_is_refused(case_of: Callable) -> None:
    upper = upper_of(case_of().bundle, "upper:1")
    with pytest.raises(ValueError, match="needed float32 \\(42,\\)"):
        upper.write_points([torch.zeros(84)])
