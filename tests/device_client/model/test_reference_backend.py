"""The reference backend equals the codec's reference decoder bit for bit, whatever the form, width, shape and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from device_client.model.backends.reference import TILE_CODES, ReferencePlan
from device_client.model.backends.reference.backend import ReferenceBackend
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes

CPU = torch.device("cpu")
NO_VALUES = torch.empty(0)


def random_tensor(rows: int, columns: int, bits: int, form: str, group_size: int, seed: int) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    codes = pack_codes(torch.randint(0, 1 << bits, (rows, columns), generator=generator), bits)
    lut_rows = {"per_row": rows, "shared": 1, "per_row_scaled": rows}.get(form)
    lut = None if lut_rows is None else torch.randn(lut_rows, 1 << bits, generator=generator).half()
    if form == "per_row":
        return QuantizedTensor(codes, columns, bits, lut=lut)
    groups = (rows, -(-columns // group_size))
    scale = torch.randn(groups, generator=generator).half()
    bias = torch.randn(groups, generator=generator).half() if form in ("uniform", "per_row_scaled") else None
    return QuantizedTensor(codes, columns, bits, lut=lut, scale=scale, bias=bias, group_size=group_size)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40) | st.integers(765, 772),
    bits=st.sampled_from([2, 3, 4, 8]),
    form=st.sampled_from(["per_row", "shared", "uniform", "scale_only", "per_row_scaled"]),
    group_size=st.integers(1, 50),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**16),
)
def test_every_form_is_bit_exact(
    rows: int, columns: int, bits: int, form: str, group_size: int, dtype: torch.dtype, seed: int
) -> None:
    tensor = random_tensor(rows, columns, bits, form, group_size, seed)

    weight = ReferenceBackend([(rows, columns)], dtype, CPU).pack_table(tensor).decode()

    assert weight.dtype == dtype
    assert torch.equal(weight, dequantize(tensor, dtype=dtype))


@pytest.mark.parametrize(("rows", "columns"), [(1700, 320), (700, 768), (3, TILE_CODES["cpu"] + 3)])
@pytest.mark.parametrize("form", ["per_row", "uniform"])
def test_weights_of_several_tiles_are_bit_exact(rows: int, columns: int, form: str) -> None:
    tensor = random_tensor(rows, columns, 4, form, 64, seed=1)
    assert rows * columns > TILE_CODES["cpu"]

    weight = ReferenceBackend([(rows, columns)], torch.float32, CPU).pack_table(tensor).decode()

    assert torch.equal(weight, dequantize(tensor))


def test_all_weights_share_one_buffer_and_leave_nothing_behind() -> None:
    shapes = [(8, 30), (3, 7), (5, 900)]
    tensors = [random_tensor(*shape, 4, "per_row", 1, seed=i) for i, shape in enumerate(shapes)]
    backend = ReferenceBackend(shapes, torch.float32, CPU)

    addresses = set()
    for tensor in [*tensors, *reversed(tensors)]:
        weight = backend.pack_table(tensor).decode()
        addresses.add(weight.data_ptr())
        assert torch.equal(weight, dequantize(tensor))
        weight.fill_(float("nan"))

    assert len(addresses) == 1


def test_two_nibbles_of_a_byte_are_two_columns_low_first() -> None:
    lut = torch.arange(16).half()[None]
    row = torch.tensor([[0x21, 0x0F]], dtype=torch.uint8)

    weight = ReferenceBackend([(1, 3)], torch.float32, CPU).pack_table(QuantizedTensor(row, 3, 4, lut=lut)).decode()

    assert weight.tolist() == [[1.0, 2.0, 15.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shapes", [[(8, 30)], [(1700, 320), (700, 768)], [(3, 9), (40, 1024)]])
def test_the_planned_workspace_is_the_real_one(shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    assert ReferenceBackend(shapes, dtype, CPU).workspace_bytes == ReferencePlan("cpu", dtype.itemsize).workspace_bytes(
        shapes
    )


def test_a_weight_that_is_kept_decoded_is_decoded_once_and_no_other_is() -> None:
    shapes = [(8, 30), (3, 7), (5, 900)]
    tensors = [random_tensor(*shape, 4, "per_row", 1, seed=i) for i, shape in enumerate(shapes)]
    backend = ReferenceBackend(shapes, torch.float32, CPU)
    weights = [backend.pack_table(tensor) for tensor in tensors]
    packed_bytes = [weight.kept_bytes for weight in weights]
    for weight in weights[:2]:
        weight.keep_decoded()
    assert [weight.kept_bytes for weight in weights] == packed_bytes

    first = [weight.decode(NO_VALUES).clone() for weight in weights]
    second = [weight.decode(NO_VALUES) for weight in weights]

    for tensor, once, twice in zip(tensors[:2], first[:2], second[:2], strict=True):
        assert torch.equal(once, dequantize(tensor))
        assert torch.equal(twice, once)
    assert second[2].data_ptr() == weights[2].decode().data_ptr()
    assert second[0].data_ptr() == weights[0].decode(NO_VALUES).data_ptr()
    assert second[0].data_ptr() != weights[0].decode().data_ptr()
    kept_bytes = [weight.kept_bytes - before for weight, before in zip(weights, packed_bytes, strict=True)]
    assert kept_bytes == [8 * 30 * 4, 3 * 7 * 4, 0]
