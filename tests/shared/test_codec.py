"""The codec: packing by hand, one decoding formula, and its laws. Quotes are from FORMAT.md."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.quantization.codec import QuantizedTensor, dequantize
from shared.quantization.packing import BIT_WIDTHS, pack_codes, packed_row_bytes, unpack_codes


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),
        (3, [1, 2, 3], [0b11_010_001, 0b0]),
        (3, [0, 0, 4], [0b00_000_000, 0b1]),
        (4, [1, 15, 7], [0xF1, 0x07]),
        (8, [0, 255], [0, 255]),
    ],
)
def test_codes_occupy_their_bits_of_the_rows_little_endian_bit_string(bits, codes, packed):
    assert pack_codes(torch.tensor([codes]), bits).tolist() == [packed]
    assert unpack_codes(torch.tensor([packed], dtype=torch.uint8), bits, len(codes)).tolist() == [codes]


@given(st.data())
def test_unpacking_undoes_packing(data):
    bits = data.draw(st.sampled_from(BIT_WIDTHS))
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    code = st.integers(0, 2**bits - 1)
    codes = data.draw(st.lists(st.lists(code, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    packed = pack_codes(torch.tensor(codes), bits)
    assert packed.shape == (rows, packed_row_bytes(columns, bits))
    assert unpack_codes(packed, bits, columns).tolist() == codes
    as_number = [int.from_bytes(bytes(row), "little") for row in packed.tolist()]
    assert as_number == [sum(value << (index * bits) for index, value in enumerate(row)) for row in codes]


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_a_code_that_does_not_fit_is_refused(bits):
    with pytest.raises(ValueError, match="bits hold"):
        pack_codes(torch.tensor([[1 << bits]]), bits)


@pytest.mark.parametrize("bits", [0, 1, 5, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match="one of"):
        pack_codes(torch.tensor([[0]]), bits)
    with pytest.raises(ValueError, match="one of"):
        unpack_codes(torch.zeros(1, 1, dtype=torch.uint8), bits, 1)
    with pytest.raises(ValueError, match="one of"):
        QuantizedTensor(torch.zeros(1, 1, dtype=torch.uint8), 1, bits)


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="cannot hold"):
        unpack_codes(torch.zeros(1, 2, dtype=torch.uint8), 4, 5)


def half(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float16)


CODES = pack_codes(torch.tensor([[0, 1, 2], [3, 2, 1]]), 2)


def test_a_per_row_codebook_decodes_by_its_own_row():
    tensor = QuantizedTensor(CODES, 3, 2, lut=half([10, 11, 12, 13], [20, 21, 22, 23]))
    assert dequantize(tensor).tolist() == [[10, 11, 12], [23, 22, 21]]
    assert tensor.shape == (2, 3)


def test_a_shared_codebook_is_scaled_by_group_and_the_last_group_may_be_shorter():
    tensor = QuantizedTensor(CODES, 3, 2, lut=half([-1, 0, 1, 2]), scale=half([2, 3], [4, 5]), group_size=2)
    assert dequantize(tensor).tolist() == [[-2, 0, 3], [8, 4, 0]]


def test_without_a_codebook_the_code_itself_is_scaled_and_shifted():
    tensor = QuantizedTensor(CODES, 3, 2, scale=half([0.5, 2], [1, 1]), bias=half([-1, 4], [0, 0.25]), group_size=2)
    assert dequantize(tensor).tolist() == [[-1, -0.5, 8], [3, 2, 1.25]]


def test_a_bias_alone_shifts():
    tensor = QuantizedTensor(CODES, 3, 2, bias=half([1], [2]), group_size=3)
    assert dequantize(tensor).tolist() == [[1, 2, 3], [5, 4, 3]]


def test_the_result_is_written_into_a_given_buffer_in_its_dtype():
    buffer = torch.empty(2, 3, dtype=torch.float16)
    tensor = QuantizedTensor(CODES, 3, 2, lut=half([0, 1, 2, 3]))
    assert dequantize(tensor, out=buffer) is buffer
    assert buffer.tolist() == [[0, 1, 2], [3, 2, 1]]
    assert dequantize(tensor, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_multiply_and_add_round_separately_in_float32():
    scale, bias = half([0.1]), half([-0.3])
    codes = pack_codes(torch.tensor([[3]]), 2)
    expected = (torch.tensor(3.0) * scale.float()[0, 0]) + bias.float()[0, 0]
    assert dequantize(QuantizedTensor(codes, 1, 2, scale=scale, bias=bias, group_size=1))[0, 0] == expected


def test_parts_and_bytes_are_those_stored():
    tensor = QuantizedTensor(CODES, 3, 2, scale=half([1, 1], [1, 1]), group_size=2)
    assert list(tensor.parts) == ["codes", "scale"]
    assert tensor.size_bytes == 2 + 2 * 2 * 2


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"lut": half([0, 1])}, "lut is"),
        ({"lut": half([0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3])}, "lut has 3 rows"),
        ({"lut": half([0, 1, 2, 3]).float()}, "lut is"),
        ({"scale": half([1], [1])}, "need a group_size"),
        ({"scale": half([1], [1]), "group_size": 2}, "scale is"),
        ({"bias": half([1], [1]), "group_size": 0}, "at least 1"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        QuantizedTensor(CODES, 3, 2, **parts)


@pytest.mark.parametrize("form", ["lut", "shared", "grouped"])
def test_rows_taken_by_number_decode_to_those_rows(form: str) -> None:
    generator = torch.Generator().manual_seed(3)
    codes = pack_codes(torch.randint(0, 16, (6, 10), generator=generator), 4)
    lut_rows = {"lut": 6, "shared": 1}.get(form)
    lut = None if lut_rows is None else torch.randn(lut_rows, 16, generator=generator).half()
    scale = None if form == "lut" else torch.randn(6, 2, generator=generator).half()
    table = QuantizedTensor(codes, 10, 4, lut=lut, scale=scale, group_size=None if scale is None else 8)

    taken = table.take(torch.tensor([5, 0, 0, 3]))

    assert torch.equal(dequantize(taken), dequantize(table)[[5, 0, 0, 3]])


def test_a_scale_of_a_whole_row_multiplies_every_column() -> None:
    codes, scale = torch.tensor([[0, 1, 255], [2, 3, 4]], dtype=torch.uint8), torch.tensor([[0.5], [2.0]]).half()
    bias = torch.tensor([[-1.0], [1.0]]).half()

    decoded = dequantize(QuantizedTensor(codes, 3, 8, scale=scale, bias=bias, group_size=3))

    assert decoded.tolist() == [[-1.0, -0.5, 126.5], [5.0, 7.0, 9.0]]
