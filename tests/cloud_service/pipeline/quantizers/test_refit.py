"""Grids and codes fitted to each other: each step against its definition, and the laws that grids keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud_service.pipeline.quantizers.compensation import damped
from cloud_service.pipeline.quantizers.grids import CodebookGrid, Grid, GroupGrid, SharedGrid
from cloud_service.pipeline.quantizers.quantize import Original, quantize_unmasked
from cloud_service.pipeline.quantizers.refit import descended_codes, fitted_values, refit
from shared.api import QuantizerSpec
from shared.quantization.codec import dequantize
from shared.quantization.packing import unpack_codes
from shared.sensitivity_mask import SensitivityMask

ROWS, COLUMNS = 6, 100
NO_MASK = SensitivityMask(np.array([], np.int32), np.array([], np.int32))
KINDS = ["codebook", "group", "shared", "shared table"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_weight() -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=generator(1)) * 0.05


def second_moment() -> Tensor:
    mixing = torch.randn(COLUMNS // 4, COLUMNS, generator=generator(2))
    inputs = torch.randn(400, COLUMNS // 4, generator=generator(3)) @ mixing / 4
    inputs += torch.randn(400, COLUMNS, generator=generator(4))
    return damped(inputs.T @ inputs / 400)


def grid_of(kind: str) -> Grid:
    table = torch.linspace(-0.15, 0.15, 8).half().float()
    scale = torch.rand(ROWS, 4, generator=generator(5)).add(0.5).half().float()
    if kind == "codebook":
        return CodebookGrid.of(table.expand(ROWS, 8).contiguous(), 3)
    if kind == "group":
        return GroupGrid(scale / 32, -scale / 8, 3, 32)
    return SharedGrid(table, scale, 3, 32, fits_table=kind == "shared table")


def codes_and_pins() -> tuple[Tensor, Tensor]:
    codes = torch.randint(0, 8, (ROWS, COLUMNS), generator=generator(6))
    return codes, torch.rand(ROWS, COLUMNS, generator=generator(7)) < 0.05


def objective(decoded: Tensor, is_pinned: Tensor) -> float:
    error = (random_weight() - decoded).masked_fill(is_pinned, 0).double()
    return float(((error @ second_moment().double()) * error).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_collect_is_the_transpose_of_expand_and_curvature_its_square(kind: str) -> None:
    grid, (codes, _) = grid_of(kind), codes_and_pins()
    amounts = torch.randn(ROWS, COLUMNS, generator=generator(8))
    shares = []
    for index in range(grid.values.numel()):
        unit = torch.zeros(grid.values.numel()).index_fill_(0, torch.tensor([index]), 1.0).view_as(grid.values)
        shares.append(grid.expand(unit, codes))
    collected = torch.stack([(share * amounts).sum() for share in shares]).view_as(grid.values)
    squared = torch.stack([(share**2 * amounts).sum() for share in shares]).view_as(grid.values)
    torch.testing.assert_close(grid.collect(amounts, codes), collected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grid.curvature(amounts, codes), squared, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_decodes_to_what_the_grid_says(kind: str) -> None:
    grid, (codes, _) = grid_of(kind), codes_and_pins()
    torch.testing.assert_close(dequantize(grid.assemble(codes)), grid.expand(grid.values, codes), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_target_is_the_nearest(kind: str) -> None:
    grid, weight = grid_of(kind), random_weight()
    for column in (0, 31, 32, 99):
        codes, decoded = grid.encode(column, weight[:, column])
        each = torch.stack([grid.expand(grid.values, torch.full((ROWS, COLUMNS), c))[:, column] for c in range(8)])
        assert torch.equal(codes, (each - weight[:, column]).abs().argmin(dim=0))
        torch.testing.assert_close(decoded, each.gather(0, codes[None])[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_steps_find_nearly_the_values_of_least_error(kind: str) -> None:
    grid, (codes, is_pinned) = grid_of(kind), codes_and_pins()
    values = fitted_values(random_weight(), second_moment(), is_pinned, grid, codes, steps=8)
    fitted = grid.expand(values, codes)
    # the least-squares problem itself: vec(error) = L (w − P v), with H = L Lᵀ
    root, free = torch.linalg.cholesky(second_moment().double()), (~is_pinned).double()
    columns = []
    for index in range(grid.values.numel()):
        unit = torch.zeros(grid.values.numel()).index_fill_(0, torch.tensor([index]), 1.0).view_as(grid.values)
        columns.append(((grid.expand(unit, codes).double() * free) @ root).flatten())
    wanted = ((random_weight().double() * free) @ root).flatten()
    matrix = torch.stack(columns, dim=1)
    best = matrix @ torch.linalg.lstsq(matrix, wanted[:, None], driver="gelsd").solution
    least = float((wanted - best[:, 0]).square().sum())
    before = objective(grid.expand(grid.values, codes), is_pinned)
    assert least <= objective(fitted, is_pinned) * (1 + 1e-6)
    assert objective(fitted, is_pinned) - least < 0.001 * (before - least)


@pytest.mark.parametrize("kind", KINDS)
def test_descent_chooses_each_column_at_the_optimum_given_the_others(kind: str) -> None:
    grid, (codes, is_pinned) = grid_of(kind), codes_and_pins()
    weight, moment = random_weight().double(), second_moment().double()
    expected = codes.clone()
    error = (weight - grid.expand(grid.values, codes)).masked_fill(is_pinned, 0)
    tables = [grid.expand(grid.values, torch.full_like(codes, code)).double() for code in range(8)]
    for column in range(COLUMNS):
        costs = []
        for table in tables:
            error[:, column] = (weight - table)[:, column].masked_fill(is_pinned[:, column], 0)
            costs.append(((error @ moment) * error).sum(dim=1))
        expected[:, column] = torch.stack(costs).argmin(dim=0)
        chosen = torch.stack(tables).gather(0, expected[None])[0, :, column]
        error[:, column] = (weight[:, column] - chosen).masked_fill(is_pinned[:, column], 0)
    found = descended_codes(random_weight(), second_moment(), is_pinned, grid, codes)
    assert torch.equal(found[~is_pinned], expected[~is_pinned])


@pytest.mark.parametrize("kind", KINDS)
def test_neither_the_codes_of_pinned_weights_nor_their_values_matter(kind: str) -> None:
    codes, is_pinned = codes_and_pins()
    others = torch.where(is_pinned, 7 - codes, codes)
    first, second = (refit(random_weight(), second_moment(), is_pinned, grid_of(kind), c) for c in (codes, others))
    assert torch.equal(first[0].values, second[0].values)
    assert torch.equal(first[1][~is_pinned], second[1][~is_pinned])


def test_a_code_that_no_weight_has_keeps_its_value() -> None:
    codes, nowhere = torch.zeros(ROWS, COLUMNS, dtype=torch.int64), torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    grid = grid_of("codebook")
    fitted = fitted_values(random_weight(), second_moment(), nowhere, grid, codes)
    assert torch.equal(fitted[:, 1:], grid.values[:, 1:])
    assert not torch.equal(fitted[:, 0], grid.values[:, 0])


@pytest.mark.parametrize("method", ["lut", "shared", "uniform", "rtn"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_refitting_lowers_the_error_of_the_outputs_further(method: str, bits: int) -> None:
    weight, moment = random_weight(), second_moment()
    errors = []
    for compensation in ("gptq", "refit"):
        spec = QuantizerSpec(method=method, bits=bits, group_size=32, compensation=compensation)  # type: ignore[arg-type]
        dense = quantize_unmasked([Original(weight, weight.square(), NO_MASK)], spec, moment)[0]
        errors.append(objective(dequantize(dense.weight), torch.zeros(ROWS, COLUMNS, dtype=torch.bool)))
    assert errors[1] < 0.95 * errors[0]


def test_rows_that_differ_by_a_factor_share_codes_and_table() -> None:
    weight = random_weight()
    both = torch.cat([weight, 4 * weight])
    for compensation in ("none", "refit"):
        spec = QuantizerSpec(method="shared", bits=3, group_size=32, compensation=compensation)  # type: ignore[arg-type]
        part = quantize_unmasked([Original(both, torch.ones_like(both), NO_MASK)], spec, second_moment())[0].weight
        codes = unpack_codes(part.codes, 3, COLUMNS)
        assert part.lut is not None
        assert part.lut.shape == (1, 8)
        assert torch.equal(codes[:ROWS], codes[ROWS:])
