"""Products in bfloat16 with the sensitive values beside them: what is rounded, what is not, and where it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from token_rows import batch_of
from torch import Tensor
from torch_threads import torch_threads

from device_client.model.backends.choose import BackendOptions
from device_client.model.backends.native.bfloat16 import Bfloat16Backend, Bfloat16Weight
from device_client.model.backends.native.library import KernelLibrary
from device_client.model.loader import load_model
from shared.errors import ResourceError
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes

ROWS, COLUMNS, TOKENS = 24, 40, 11
INDICES = torch.tensor([0, 3, 39, 40, 81, 500, 501, 959])


def packed() -> QuantizedTensor:
    generator = torch.Generator().manual_seed(1)
    codes = pack_codes(torch.randint(0, 16, (ROWS, COLUMNS), generator=generator), 4)
    return QuantizedTensor(codes, COLUMNS, 4, lut=torch.randn(ROWS, 16, generator=generator).half())


@pytest.fixture
def weight(library: KernelLibrary) -> Bfloat16Weight:
    backend = Bfloat16Backend(library, [(ROWS, COLUMNS)])
    found = backend.pack(packed(), INDICES)
    assert isinstance(found, Bfloat16Weight)
    return found


def inputs_and_values(points: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(TOKENS, COLUMNS, generator=generator).expand(points, -1, -1)
    return inputs, torch.randn(points, len(INDICES), generator=generator)


def test_codes_are_rounded_and_sensitive_values_are_not(weight: Bfloat16Weight) -> None:
    inputs, values = inputs_and_values(1)
    dense = dequantize(packed(), dtype=torch.bfloat16)
    dense.view(-1)[INDICES] = 0
    sensitive = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    sensitive.view(-1)[INDICES] = values[0].double()
    rounded = torch.mm(inputs[0].bfloat16(), dense.T).double()

    found = weight.multiply(inputs, values, None)[0]

    torch.testing.assert_close(found.double(), rounded + inputs[0].double() @ sensitive.T, rtol=1e-6, atol=1e-6)
    assert torch.equal(weight.multiply(inputs, values, torch.ones(ROWS))[0], found + 1)


def test_a_perturbation_below_the_spacing_of_bfloat16_survives(weight: Bfloat16Weight) -> None:
    """A value of 1 and one of 1 + 1e-4 are the same bfloat16 number; their products differ by 1e-4 · x."""
    inputs, _ = inputs_and_values(1)
    ones = torch.ones(1, len(INDICES))
    place = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    place.view(-1)[INDICES] = 1e-4

    moved = weight.multiply(inputs, ones + 1e-4, None)[0] - weight.multiply(inputs, ones, None)[0]

    assert torch.equal((ones + 1e-4).bfloat16(), ones.bfloat16())
    torch.testing.assert_close(moved.double(), inputs[0].double() @ place.T, rtol=2e-2, atol=4e-6)


def test_what_is_kept_takes_half_of_float32_and_changes_no_bit(weight: Bfloat16Weight) -> None:
    inputs, values = inputs_and_values(2)
    before, bytes_before = weight.multiply(inputs, values, None), weight.kept_bytes
    weight.keep_decoded()

    assert all(torch.equal(weight.multiply(inputs, values, None), before) for _ in range(2))
    assert weight.kept_bytes - bytes_before == weight.decoded_bytes(4) == ROWS * COLUMNS * 2


def test_bits_of_a_point_depend_neither_on_the_others_nor_on_threads(weight: Bfloat16Weight) -> None:
    inputs, values = inputs_and_values(3)
    together = weight.multiply(inputs, values, None)
    for point in range(3):
        assert torch.equal(weight.multiply(inputs[:1], values[point : point + 1], None)[0], together[point])
    with torch_threads(3):
        assert torch.equal(weight.multiply(inputs, values, None), together)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_computes_nearly_the_same_logits_and_moves_with_its_values(
    case_of: Callable, kernels: Path, model_type: str
) -> None:
    bundle = case_of(model_type).bundle
    exact = load_model(bundle, device="cpu", backend=BackendOptions("native", kernels))
    model = load_model(bundle, device="cpu", backend=BackendOptions("auto", kernels, products="bfloat16"))
    assert (model.products, model.backend_name, model.compute_dtype) == ("bfloat16", "native", torch.float32)
    batch = batch_of([list(range(4, 24)), list(range(30, 41))])

    for theta in (model.initial_theta(), model.initial_theta() + 0.5):
        model.write_theta(theta)
        exact.write_theta(theta)
        expected = exact.logits(batch)
        assert (model.logits(batch) - expected).abs().max() < 0.02 * expected.abs().max()
        assert not torch.equal(model.logits(batch), expected)


@pytest.mark.parametrize(
    ("name", "dtype"), [("reference", None), ("triton", None), ("native", torch.bfloat16), ("auto", torch.float16)]
)
def test_other_backends_and_formats_are_refused(
    case_of: Callable, kernels: Path, name: str, dtype: torch.dtype | None
) -> None:
    options = BackendOptions(name, kernels, products="bfloat16")  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="products in bfloat16") as caught:
        load_model(case_of().bundle, device="cpu", compute_dtype=dtype, backend=options)
    assert caught.value.needed == "a CPU, --dtype float32 and --backend native"
