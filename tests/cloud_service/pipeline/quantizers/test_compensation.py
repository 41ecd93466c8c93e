"""Error compensation: the greedy optimum, pinned weights, groups, inputs that are always 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cloud_service.pipeline.quantizers.compensation import (
    ColumnCoder,
    GridCoder,
    GroupCoder,
    inverse_factor,
    quantize_compensated,
)
from cloud_service.pipeline.quantizers.grids import CodebookGrid
from cloud_service.pipeline.quantizers.quantize import DensePart, Original, quantize_unmasked
from cloud_service.pipeline.quantizers.rtn import range_grid
from shared.api import QuantizerSpec
from shared.errors import UnsupportedModel
from shared.quantization.codec import dequantize
from shared.quantization.packing import unpack_codes
from shared.sensitivity_mask import SensitivityMask

METHODS = ["lut", "uniform", "rtn"]
NO_MASK = SensitivityMask(np.array([], np.int32), np.array([], np.int32))


def correlated_inputs(tokens: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    scale = torch.exp(torch.randn(columns, generator=generator) / 2)
    own = torch.randn(tokens, columns, generator=generator)
    return (torch.randn(tokens, columns // 4, generator=generator) @ mixing / 4 + own) * scale


def second_moment(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / len(inputs)


def random_weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.05


def codes_of(weight: Tensor, moment: Tensor, is_pinned: Tensor, coder: ColumnCoder) -> Tensor:
    quantized = quantize_compensated(weight, moment, is_pinned, coder)
    return unpack_codes(quantized.codes, quantized.bits, quantized.in_features)


def greedy_codes(
    weight: Tensor, moment: Tensor, is_pinned: Tensor, lut: Tensor | None, group_size: int = 0, bits: int = 4
) -> np.ndarray:
    """Equation 13 greedily, from its definition: with some columns fixed, the others stand at the optimum given them.

    Minimising tr((W − V) H (W − V)ᵀ) over the free columns of V gives V_free = W_free + (W − V)_fixed H_ff' H_free⁻¹.
    """
    original, h, pinned = weight.double().numpy(), moment.double().numpy(), is_pinned.numpy()
    h = h + 0.01 * h.diagonal().mean() * np.eye(len(h))
    order = np.argsort(-moment.diagonal().numpy(), kind="stable") if lut is not None else np.arange(len(h))
    drift = np.zeros_like(original)
    codes = np.zeros(original.shape, np.uint8)
    for step, column in enumerate(order):
        fixed, free = order[:step], order[step:]
        current = original[:, free] + drift[:, fixed] @ np.linalg.solve(h[np.ix_(free, free)], h[np.ix_(free, fixed)]).T
        if lut is not None:
            table = lut.double().numpy()
        elif step % group_size == 0:
            group = np.where(pinned[:, free[:group_size]], np.nan, current[:, :group_size])
            low, high = np.nanmin(group, axis=1), np.nanmax(group, axis=1)
            scale = ((high - low) / (2**bits - 1)).astype(np.float16).astype(float)
            table = low.astype(np.float16).astype(float)[:, None] + scale[:, None] * np.arange(2**bits)
        codes[:, column] = np.abs(current[:, :1] - table).argmin(axis=1)
        decoded = np.take_along_axis(table, codes[:, column : column + 1].astype(int), axis=1)[:, 0]
        drift[:, column] = np.where(pinned[:, column], 0.0, original[:, column] - decoded)
    return codes


def some_pinned(rows: int, columns: int) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(9)) < 0.02


def test_two_columns_worked_by_hand() -> None:
    # Codebook −1, 0, 1, 2; H = [[1, ½], [½, 1]] and 0.01 on its diagonal. Column 0: 0.4 → 0, so 0.4 is lost, and
    # column 1 should stand at 0.4 + 0.4 · 0.5 / 1.01 = 0.598, whose nearest value is 1. Alone it would have been 0.
    lut = torch.tensor([[-1.0, 0.0, 1.0, 2.0]], dtype=torch.float16)
    weight, moment = torch.tensor([[0.4, 0.4]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    nowhere = torch.zeros(1, 2, dtype=torch.bool)
    assert codes_of(weight, moment, nowhere, GridCoder(CodebookGrid.of(lut, 2))).tolist() == [[1, 2]]


def test_what_a_pinned_weight_was_moved_by_is_passed_on() -> None:
    # Column 0 loses 0.4 and moves columns 1 and 2 by 0.4 · 0.5 / 1.01 · 1.01 / 1.51 = 0.132 each. Column 1 is pinned:
    # it stays 0.4, so that column 2 has to move to 0.4 + 0.4 · 0.5 / 1.01 = 0.598 alone; 0.532 without the passing on.
    lut = torch.tensor([[-1.0, 0.0, 0.55, 0.6]], dtype=torch.float16)
    moment = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]])
    weight, is_pinned = torch.tensor([[-0.6, 0.4, 0.4]]), torch.tensor([[False, True, False]])
    assert codes_of(weight, moment, is_pinned, GridCoder(CodebookGrid.of(lut, 2)))[0, 2] == 3


def test_codebook_codes_are_the_greedy_optimum() -> None:
    weight, moment, is_pinned = random_weight(6, 150), second_moment(correlated_inputs(400, 150)), some_pinned(6, 150)
    lut = torch.linspace(-0.15, 0.15, 16).half().expand(6, 16).contiguous()
    found = codes_of(weight, moment, is_pinned, GridCoder(CodebookGrid.of(lut, 4))).numpy()
    expected = greedy_codes(weight, moment, is_pinned, lut)
    assert np.array_equal(found[~is_pinned.numpy()], expected[~is_pinned.numpy()])


@pytest.mark.parametrize("group_size", [8, 48, 64, 128, 136, 256])
def test_group_codes_are_the_greedy_optimum_for_any_group_size(group_size: int) -> None:
    weight, moment, is_pinned = random_weight(4, 270), second_moment(correlated_inputs(600, 270)), some_pinned(4, 270)
    importance = (~is_pinned).float()
    found = codes_of(weight, moment, is_pinned, GroupCoder(importance, 3, group_size, range_grid)).numpy()
    expected = greedy_codes(weight, moment, is_pinned, None, group_size, bits=3)
    assert np.array_equal(found[~is_pinned.numpy()], expected[~is_pinned.numpy()])


def output_error(weight: Tensor, dense: DensePart, inputs: Tensor) -> float:
    """‖(W − Q) X‖² / ‖W X‖², the share of a layer's output that its error makes up."""
    error = (weight - dequantize(dense.weight).cpu()) @ inputs.T
    return float(error.double().square().sum() / (weight @ inputs.T).double().square().sum())


# 256 codes for 172 columns leave a codebook no error to make up for
@pytest.mark.parametrize(("method", "bits"), [(m, b) for m in METHODS for b in (2, 3, 4, 8) if (m, b) != ("lut", 8)])
def test_compensation_lowers_the_error_of_the_outputs(method: str, bits: int) -> None:
    weight, inputs = random_weight(24, 172), correlated_inputs(500, 172)
    errors = []
    for compensation in ("none", "gptq"):
        spec = QuantizerSpec(method=method, bits=bits, compensation=compensation)  # type: ignore[arg-type]
        dense = quantize_unmasked([Original(weight, torch.ones_like(weight), NO_MASK)], spec, second_moment(inputs))[0]
        errors.append(output_error(weight, dense, inputs))
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_independent_inputs_leave_nothing_to_make_up_for(method: str, scale: float) -> None:
    weight, fisher = random_weight(8, 172), random_weight(8, 172).square()
    mask = SensitivityMask(np.array([3, 700], np.int32), np.array([1, 0], np.int32))
    moment = scale * torch.diag(torch.arange(172.0))
    alone, compensated = (
        quantize_unmasked([Original(weight, fisher, mask)], QuantizerSpec(method=method, compensation=c), moment)[0]  # type: ignore[arg-type]
        for c in ("none", "gptq")
    )
    for name in {"lut", "scale", "bias"} & set(alone.weight.parts):
        assert torch.equal(compensated.weight.parts[name], alone.weight.parts[name])
    codes = [unpack_codes(part.weight.codes, 4, 172).flatten() for part in (alone, compensated)]
    is_dense = torch.ones(8 * 172, dtype=torch.bool).index_fill_(0, torch.tensor([3, 700]), False)
    assert torch.equal(codes[0][is_dense], codes[1][is_dense])


def test_an_input_that_is_always_zero_neither_passes_on_nor_takes_up_error() -> None:
    inputs = correlated_inputs(300, 40)
    inputs[:, 7] = 0
    weight, nowhere = random_weight(5, 40), torch.zeros(5, 40, dtype=torch.bool)
    lut = torch.linspace(-0.15, 0.15, 16).half().expand(5, 16).contiguous()
    codes = codes_of(weight, second_moment(inputs), nowhere, GridCoder(CodebookGrid.of(lut, 4)))
    assert torch.equal(codes[:, 7].long(), (weight[:, 7:8] - lut.float()).abs().argmin(dim=1))
    changed = codes_of(
        weight.index_fill(1, torch.tensor([7]), 0.1), second_moment(inputs), nowhere, GridCoder(CodebookGrid.of(lut, 4))
    )
    others = torch.arange(40) != 7
    assert torch.equal(changed[:, others], codes[:, others])


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    moment = second_moment(correlated_inputs(30, 60))  # of rank 30: without damping there is no inverse
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(60)
    upper = inverse_factor(moment)
    assert torch.equal(upper, upper.triu())
    # the condition number is about 1e4, float32 carries 1e-7
    torch.testing.assert_close(upper.T.double() @ upper.double() @ damped, torch.eye(60).double(), rtol=0, atol=5e-3)


def test_a_matrix_that_float32_made_indefinite_is_damped_more_strongly() -> None:
    moment = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    upper = inverse_factor(moment)  # 0.01 · 0.7375 < 0.05 < 0.1 · 0.7375 = 0.07375
    torch.testing.assert_close((upper.T @ upper).diagonal().reciprocal(), moment.diagonal() + 0.07375)


@pytest.mark.parametrize("moment", [torch.full((3, 3), torch.nan), torch.diag(torch.tensor([1.0, 1.0, -1.5]))])
def test_a_second_moment_that_cannot_be_one_is_refused(moment: Tensor) -> None:
    with pytest.raises(UnsupportedModel, match=r"second moments.*\n.*finite activations.*\n.*compensation none"):
        inverse_factor(moment)


def test_the_arguments_are_not_changed() -> None:
    weight, moment = random_weight(4, 50), second_moment(correlated_inputs(100, 50))
    before = weight.clone(), moment.clone()
    mask = SensitivityMask(np.array([3, 120], np.int32), np.array([1, 0], np.int32))
    for method in METHODS:
        spec = QuantizerSpec(method=method, compensation="gptq")  # type: ignore[arg-type]
        quantize_unmasked([Original(weight, torch.ones_like(weight), mask)], spec, moment)
    assert torch.equal(weight, before[0])
    assert torch.equal(moment, before[1])


@pytest.mark.parametrize("method", [*METHODS, "shared"])
@pytest.mark.parametrize("compensation", ["none", "gptq", "refit"])
def test_weights_that_read_the_same_inputs_get_together_what_each_gets_alone(method: str, compensation: str) -> None:
    moment = second_moment(correlated_inputs(300, 96))
    mask = SensitivityMask(np.array([3, 120], np.int32), np.array([1, 0], np.int32))
    originals = [
        Original(weight, weight.square(), pinned)
        for weight, pinned in zip(random_weight(40, 96).split([16, 8, 16]), (NO_MASK, mask, NO_MASK), strict=True)
    ]
    spec = QuantizerSpec(method=method, group_size=32, compensation=compensation)  # type: ignore[arg-type]
    together = quantize_unmasked(originals, spec, moment)
    for original, part in zip(originals, together, strict=True):
        alone = quantize_unmasked([original], spec, moment)[0]
        assert part.weight.shape == alone.weight.shape
        torch.testing.assert_close(dequantize(part.weight), dequantize(alone.weight), rtol=0, atol=1e-6)
        assert part.weighted_relative_error == pytest.approx(alone.weighted_relative_error, rel=1e-5)


def test_compensation_without_second_moments_is_refused() -> None:
    weight = random_weight(2, 16)
    with pytest.raises(ValueError, match="needs the second moment"):
        quantize_unmasked([Original(weight, weight.square(), NO_MASK)], QuantizerSpec(compensation="gptq"))


def test_an_unknown_compensation_is_refused() -> None:
    with pytest.raises(ValidationError, match="compensation"):
        QuantizerSpec(compensation="obq")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_reaches_the_error_that_the_processor_reaches(method: str) -> None:
    weight, inputs = random_weight(64, 400), correlated_inputs(900, 400)
    moment = second_moment(inputs)
    spec = QuantizerSpec(method=method, compensation="gptq")  # type: ignore[arg-type]
    here, there = (
        quantize_unmasked([Original(weight.to(d), torch.ones_like(weight).to(d), NO_MASK)], spec, moment.to(d))[0]
        for d in ("cpu", "cuda")
    )
    # a code that flips on a rounding difference moves all that come after it, to another solution as good
    assert output_error(weight, there, inputs) == pytest.approx(output_error(weight, here, inputs), rel=0.02)
