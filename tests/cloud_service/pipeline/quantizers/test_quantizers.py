"""The three quantisers: optimality, masked weights, bit widths, odd shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.lut import row_codebooks
from cloud_service.pipeline.quantizers.quantize import Original, importance_of, quantize, quantize_unmasked
from shared.api import QuantizerSpec
from shared.quantization.codec import dequantize
from shared.sensitivity_mask import SensitivityMask

METHODS = ["lut", "uniform", "rtn"]


def random_rows(rows: int, columns: int, skew: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    return weight, torch.exp(skew * torch.randn(rows, columns, generator=generator))


def weighted_error(weight: Tensor, importance: Tensor, decoded: Tensor) -> float:
    return float((importance.double() * (weight.double() - decoded.double()) ** 2).sum())


def optimum(values: np.ndarray, mass: np.ndarray, clusters: int) -> float:
    """Exact weighted 1-D k-means by the textbook O(K n²) dynamic programme over the sorted row."""
    order = np.argsort(values)
    x, p = values[order], mass[order]
    sums = [np.concatenate([[0.0], np.cumsum(term)]) for term in (p, p * x, p * x * x)]
    weight, first, second = (total[None, :] - total[:, None] for total in sums)
    cost = np.where(weight > 0, second - first**2 / np.where(weight > 0, weight, 1), 0.0)
    cost[np.tril_indices(len(cost), -1)] = np.inf
    best = cost[0]
    for _ in range(clusters - 1):
        best = (best[:, None] + cost).min(axis=0)
    return float(best[-1])


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("skew", [0.0, 1.0, 3.0])
def test_the_codebooks_are_within_a_thousandth_of_the_exact_optimum(bits: int, skew: float) -> None:
    weight, importance = random_rows(16, 500, skew)
    codebooks = row_codebooks(weight, importance, 1 << bits).float()
    nearest = (weight[:, :, None] - codebooks[:, None, :]).abs().min(dim=2).values
    found = float((importance.double() * nearest.double() ** 2).sum())
    exact = sum(
        optimum(w.double().numpy(), p.double().numpy(), 1 << bits) for w, p in zip(weight, importance, strict=True)
    )
    # Rounding the codebook to float16 is part of what is found: it adds about 2^-22 of a weight's square.
    assert exact * (1 - 1e-9) <= found <= exact * 1.001


def test_a_row_with_no_more_values_than_codes_is_exact() -> None:
    values = torch.tensor([-0.5, -0.25, 0.125, 0.75])
    weight = values[torch.randint(0, 4, (3, 200), generator=torch.Generator().manual_seed(0))]
    decoded = dequantize(quantize(weight, torch.ones_like(weight), QuantizerSpec(method="lut", bits=2)))
    assert torch.equal(decoded, weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_method_and_width_decodes_near_the_weight(method: str, bits: int) -> None:
    weight, importance = random_rows(8, 172, 1.0)
    spec = QuantizerSpec(method=method, bits=bits, group_size=64)  # type: ignore[arg-type]
    quantized = quantize(weight, importance, spec)
    relative = float(((weight - dequantize(quantized)) ** 2).sum() / (weight**2).sum())
    # A Gaussian's distortion at b bits is at most about 3·4^-b·(a group's range in σ / 4)²; all stay below this.
    assert relative < {2: 0.6, 3: 0.12, 4: 0.03, 8: 2e-4}[bits]
    assert quantized.shape == (8, 172)


@pytest.mark.parametrize("method", METHODS)
def test_masked_weights_have_no_influence(method: str) -> None:
    weight, importance = random_rows(6, 100, 1.0)
    masked = torch.zeros_like(weight, dtype=torch.bool)
    masked[torch.arange(6), torch.arange(6) * 13] = True
    importance = importance.masked_fill(masked, 0)
    spec = QuantizerSpec(method=method, group_size=32)  # type: ignore[arg-type]
    plain = quantize(weight, importance, spec)
    changed = quantize(weight.masked_fill(masked, 50.0), importance, spec)
    for name in {"lut", "scale", "bias"} & set(plain.parts):
        assert torch.equal(plain.parts[name], changed.parts[name])
    assert torch.equal(dequantize(plain)[~masked], dequantize(changed)[~masked])


def test_weighting_by_importance_lowers_the_weighted_error() -> None:
    weight, importance = random_rows(8, 256, 2.0)
    for method in ("lut", "uniform"):
        spec = QuantizerSpec(method=method, bits=3)  # type: ignore[arg-type]
        weighted, plain = (quantize(weight, p, spec) for p in (importance, torch.ones_like(importance)))
        assert weighted_error(weight, importance, dequantize(weighted)) < weighted_error(
            weight, importance, dequantize(plain)
        )


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_both_searches_beat_round_to_nearest(bits: int) -> None:
    weight, importance = random_rows(16, 512, 1.0)
    lut, uniform, rtn = (
        weighted_error(weight, importance, dequantize(quantize(weight, importance, spec)))
        for spec in (QuantizerSpec(method=method, bits=bits) for method in METHODS)  # type: ignore[arg-type]
    )
    assert max(lut, uniform) < 0.9 * rtn


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.3, -7.5])
def test_a_constant_weight_stays_finite_and_near(method: str, value: float) -> None:
    weight = torch.full((2, 40), value)
    decoded = dequantize(quantize(weight, torch.ones_like(weight), QuantizerSpec(method=method)))  # type: ignore[arg-type]
    torch.testing.assert_close(decoded, weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_is_masked_altogether_stays_finite(method: str) -> None:
    weight, importance = random_rows(2, 40, 1.0)
    importance[0] = 0
    assert torch.isfinite(dequantize(quantize(weight, importance, QuantizerSpec(method=method)))).all()  # type: ignore[arg-type]


def test_importance_is_one_plus_the_floor_on_average_zero_at_the_mask_and_never_below_the_floor() -> None:
    fisher = torch.tensor([[0.0, 1e-20, 3e-20, 9.0], [0.0, 0.0, 0.0, 0.0]])
    importance = importance_of(fisher, torch.tensor([3]), floor=0.5)
    torch.testing.assert_close(importance[0], torch.tensor([0.5, 0.75 + 0.5, 2.25 + 0.5, 0.0]))
    assert torch.equal(importance[1], torch.ones(4))


def test_errors_are_measured_over_the_unmasked_weights() -> None:
    weight = torch.zeros(1, 40)
    weight[0, :20], weight[0, 39] = 1.0, 8.0
    mask = SensitivityMask(np.array([39], np.int32), np.array([0], np.int32))
    dense = quantize_unmasked(
        [Original(weight, torch.ones_like(weight), mask)], QuantizerSpec(bits=2, compensation="none")
    )[0]
    assert (dense.relative_error, dense.weighted_relative_error) == (0.0, 0.0)
