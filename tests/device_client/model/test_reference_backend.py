"""The reference backend equals the codec's reference decoder bit for bit, whatever the form, width, shape and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from device_client.model.backends.decoded_cache import DecodedCache
from device_client.model.backends.packed_weight import PackedWeight
from device_client.model.backends.reference import ReferenceBackend
from device_client.model.backends.reference_tiles import TILE_CODES, workspace_bytes
from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import pack_codes

CPU = torch.device("cpu")
NO_VALUES = torch.empty(0)


def packed(tensor: QuantizedTensor) -> PackedWeight:
    return PackedWeight(tensor, torch.empty(0, dtype=torch.int64), torch.zeros(tensor.shape[0] + 1, dtype=torch.int32))


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

    weight = ReferenceBackend([(rows, columns)], dtype, CPU).dequantize(packed(tensor))

    assert weight.dtype == dtype
    assert torch.equal(weight, dequantize(tensor, dtype=dtype))


@pytest.mark.parametrize(("rows", "columns"), [(1700, 320), (700, 768), (3, TILE_CODES["cpu"] + 3)])
@pytest.mark.parametrize("form", ["per_row", "uniform"])
def test_weights_of_several_tiles_are_bit_exact(rows: int, columns: int, form: str) -> None:
    tensor = random_tensor(rows, columns, 4, form, 64, seed=1)
    assert rows * columns > TILE_CODES["cpu"]

    weight = ReferenceBackend([(rows, columns)], torch.float32, CPU).dequantize(packed(tensor))

    assert torch.equal(weight, dequantize(tensor))


def test_all_weights_share_one_buffer_and_leave_nothing_behind() -> None:
    shapes = [(8, 30), (3, 7), (5, 900)]
    tensors = [random_tensor(*shape, 4, "per_row", 1, seed=i) for i, shape in enumerate(shapes)]
    backend = ReferenceBackend(shapes, torch.float32, CPU)

    addresses = set()
    for tensor in [*tensors, *reversed(tensors)]:
        weight = backend.dequantize(packed(tensor))
        addresses.add(weight.data_ptr())
        assert torch.equal(weight, dequantize(tensor))
        weight.fill_(float("nan"))

    assert len(addresses) == 1


def test_two_nibbles_of_a_byte_are_two_columns_low_first() -> None:
    lut = torch.arange(16).half()[None]
    row = torch.tensor([[0x21, 0x0F]], dtype=torch.uint8)

    weight = ReferenceBackend([(1, 3)], torch.float32, CPU).dequantize(packed(QuantizedTensor(row, 3, 4, lut=lut)))

    assert weight.tolist() == [[1.0, 2.0, 15.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shapes", [[(8, 30)], [(1700, 320), (700, 768)], [(3, 9), (40, 1024)]])
def test_the_planned_workspace_is_the_real_one(shapes: list[tuple[int, int]], dtype: torch.dtype) -> None:
    assert ReferenceBackend(shapes, dtype, CPU).workspace_bytes == workspace_bytes(shapes, "cpu", dtype.itemsize)


def test_a_cache_keeps_what_fits_and_decodes_the_rest_each_time() -> None:
    shapes = [(8, 30), (3, 7), (5, 900), (2, 20)]
    tensors = [random_tensor(*shape, 4, "per_row", 1, seed=i) for i, shape in enumerate(shapes)]
    weights = [packed(tensor) for tensor in tensors]
    reference = ReferenceBackend(shapes, torch.float32, CPU)
    packed_bytes = reference.workspace_bytes
    cache = DecodedCache(reference, (8 * 30 + 3 * 7 + 2 * 20) * 4)

    first = [cache.dequantize(weight, NO_VALUES).clone() for weight in weights]
    second = [cache.dequantize(weight, NO_VALUES) for weight in weights]

    for tensor, once, twice in zip(
        tensors[:2] + tensors[3:], first[:2] + first[3:], second[:2] + second[3:], strict=True
    ):
        assert torch.equal(once, dequantize(tensor))
        assert torch.equal(twice, once)
    assert second[2].data_ptr() == reference.dequantize(weights[2]).data_ptr()
    assert second[0].data_ptr() == cache.dequantize(weights[0], NO_VALUES).data_ptr()
    assert cache.workspace_bytes == packed_bytes + (8 * 30 + 3 * 7 + 2 * 20) * 4
