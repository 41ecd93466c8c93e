"""The sensitivity mask against sorting everything."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cloud_service.pipeline.fisher.select_sensitive import (
    Masks,
    gradient_mass,
    overlap,
    select_largest,
    select_random,
    sensitive_count,
)
from cloud_service.pipeline.fisher.stored_tensors import StoredTensors
from shared.sensitivity_mask import SensitivityMask, check_indices, check_ranks


def brute_force(fisher: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """Sort (−F, tensor order, index) in plain Python; return each tensor's chosen indices, most sensitive first."""
    entries = [
        (-value, order, index)
        for order, values in enumerate(fisher.values())
        for index, value in enumerate(values.flatten().tolist())
    ]
    chosen = sorted(entries)[:count]
    return {name: [index for _, at, index in chosen if at == order] for order, name in enumerate(fisher)}


def by_rank(mask: SensitivityMask) -> list[int]:
    return [int(index) for index in mask.indices[np.argsort(mask.rank)]]


@st.composite
def fishers(draw: st.DrawFn) -> dict[str, Tensor]:
    """Up to three small tensors of few distinct values, so that ties at the threshold are common."""
    value = st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1.0 + 2**-23, 3e8])
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return {
        f"t{number}": torch.tensor(draw(st.lists(value, min_size=size, max_size=size)))
        for number, size in enumerate(sizes)
    }


@settings(max_examples=150, deadline=None)
@given(fishers(), st.floats(0.01, 0.5))
def test_the_global_mask_equals_brute_force(fisher: dict[str, Tensor], sparsity: float) -> None:
    total = sum(values.numel() for values in fisher.values())
    masks = select_largest(fisher, sparsity, "global")
    assert {name: by_rank(mask) for name, mask in masks.items()} == brute_force(fisher, round(sparsity * total))
    check_ranks("all", np.concatenate([mask.rank for mask in masks.values()]))


@settings(max_examples=150, deadline=None)
@given(fishers(), st.floats(0.01, 0.5))
def test_the_mask_per_tensor_equals_brute_force(fisher: dict[str, Tensor], sparsity: float) -> None:
    masks = select_largest(fisher, sparsity, "per_tensor")
    for name, values in fisher.items():
        expected = brute_force({name: values}, round(sparsity * values.numel()))[name]
        assert by_rank(masks[name]) == expected
        check_indices(name, masks[name].indices, values.numel())
        check_ranks(name, masks[name].rank)


@settings(max_examples=100, deadline=None)
@given(fishers(), st.floats(0.01, 0.25), st.sampled_from(["per_tensor", "global"]))
def test_the_top_of_a_larger_mask_is_the_smaller_mask(
    fisher: dict[str, Tensor], sparsity: float, scope: Literal["per_tensor", "global"]
) -> None:
    large, small = select_largest(fisher, 2 * sparsity, scope), select_largest(fisher, sparsity, scope)
    count = {name: len(mask) for name, mask in small.items()}
    for name, mask in large.items():
        top = mask.top(sum(count.values()) if scope == "global" else count[name])
        assert mask.indices[top].tolist() == small[name].indices.tolist()
        assert mask.rank[top].tolist() == small[name].rank.tolist()


@pytest.mark.parametrize("scope", ["per_tensor", "global"])
def test_tensors_may_be_loaded_as_they_are_asked_for(scope: Literal["per_tensor", "global"]) -> None:
    fisher = {name: torch.rand(50, generator=torch.Generator().manual_seed(number)) for number, name in enumerate("ab")}
    loaded = StoredTensors(fisher, lambda name: fisher[name].clone())
    stored, held = select_largest(loaded, 0.1, scope), select_largest(fisher, 0.1, scope)
    assert {name: by_rank(mask) for name, mask in stored.items()} == {
        name: by_rank(mask) for name, mask in held.items()
    }


@pytest.mark.parametrize(("scope", "loads"), [("per_tensor", 1), ("global", 3)])
def test_no_tensor_is_loaded_more_often_than_the_selection_needs(
    scope: Literal["per_tensor", "global"], loads: int
) -> None:
    loaded: Counter[str] = Counter()

    def load(name: str) -> Tensor:
        loaded[name] += 1
        return torch.arange(10.0)

    select_largest(StoredTensors("ab", load), 0.2, scope, elements=20)
    assert loaded == {"a": loads, "b": loads}


def test_ties_are_broken_by_the_lower_index() -> None:
    masks = select_largest({"w": torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 0.0]])}, 0.5, "per_tensor")
    assert masks["w"].indices.tolist() == [0, 1, 2]
    assert masks["w"].rank.tolist() == [1, 0, 2]


def test_a_tensor_that_is_too_small_has_an_empty_mask() -> None:
    masks = select_largest({"small": torch.ones(3), "large": torch.ones(1000)}, 0.001, "per_tensor")
    assert (len(masks["small"]), len(masks["large"])) == (0, 1)


def test_a_global_random_mask_is_every_set_and_order_equally_often() -> None:
    # 5 elements, 2 of them: 10 sets in 2 orders each. 4000 draws give 200 of each; χ² of 19 degrees of freedom exceeds
    # 43.8 once in 1000 seeds.
    seen: Counter[tuple[str, ...]] = Counter()
    for seed in range(4000):
        masks = select_random({"a": 3, "b": 2}, 0.4, "global", seed)
        ranked = {
            int(rank): f"{name}{index}"
            for name, mask in masks.items()
            for index, rank in zip(mask.indices, mask.rank, strict=True)
        }
        seen[ranked[0], ranked[1]] += 1
    assert len(seen) == 20
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 43.8


@pytest.mark.parametrize(("sparsity", "sizes"), [(0.5, [7, 1, 90]), (0.03, [40_000, 30_000]), (0.001, [400, 50])])
def test_a_global_random_mask_has_exactly_k_in_valid_ranks(sparsity: float, sizes: list[int]) -> None:
    masks = select_random({str(number): size for number, size in enumerate(sizes)}, sparsity, "global", seed=9)
    ranks = np.concatenate([mask.rank for mask in masks.values()])
    assert len(ranks) == round(sparsity * sum(sizes))
    check_ranks("all", ranks)
    for mask, size in zip(masks.values(), sizes, strict=True):
        check_indices("some", mask.indices, size)


def test_a_global_random_mask_of_more_weights_than_numpy_draws_from_at_once() -> None:
    masks = select_random(dict.fromkeys("abc", 700_000_000), 1e-6, "global", seed=0)
    counts = [len(mask) for mask in masks.values()]
    assert sum(counts) == 2100
    assert min(counts) > 600  # 700 ± 22


@pytest.mark.parametrize("scope", ["per_tensor", "global"])
def test_a_random_mask_has_as_many_weights_and_depends_on_the_seed_alone(scope: str) -> None:
    sizes = {"a": 1000, "b": 5000}
    masks = select_random(sizes, 0.01, scope, seed=3)  # type: ignore[arg-type]
    again = select_random(sizes, 0.01, scope, seed=3)  # type: ignore[arg-type]
    other = select_random(sizes, 0.01, scope, seed=4)  # type: ignore[arg-type]
    assert sum(len(mask) for mask in masks.values()) == 60
    assert all(np.array_equal(masks[name].indices, again[name].indices) for name in sizes)
    assert any(not np.array_equal(masks[name].indices, other[name].indices) for name in sizes)
    for name, mask in masks.items():
        check_indices(name, mask.indices, sizes[name])
    scopes = [list(masks.values())] if scope == "global" else [[mask] for mask in masks.values()]
    for members in scopes:
        check_ranks(scope, np.concatenate([mask.rank for mask in members]))


def mask_of(*indices: int) -> SensitivityMask:
    return SensitivityMask(np.array(indices, np.int32), np.arange(len(indices), dtype=np.int32))


def test_overlap_is_the_share_of_common_weights() -> None:
    first: Masks = {"a": mask_of(0, 1, 2), "b": mask_of(5)}
    second: Masks = {"a": mask_of(1, 2, 9), "b": mask_of(6)}
    assert overlap(first, second) == 0.5


def test_gradient_mass_is_the_share_of_the_sum() -> None:
    fisher = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0])}
    assert gradient_mass(fisher, {"a": mask_of(2), "b": mask_of(0)}) == pytest.approx(0.7)


def test_k_is_rounded_half_to_even() -> None:
    assert [sensitive_count(elements, 0.001) for elements in (499, 500, 1500, 4096 * 4096)] == [0, 0, 2, 16777]
