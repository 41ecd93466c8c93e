"""Triton kernels on packed weights: decode, write sensitive values, multiply a few tokens from the codes.

    w[r, c] = lut[r or 0, code[r, c]] · scale[r, c // g] + bias[r, c // g]
    y[t, r] = Σ_c x[t, c] w[r, c]  +  Σ_j x[t, c_j] (value_j − w[r, c_j])  +  b[r]          Equation 24

Arithmetic is float32 with one rounding to the output dtype. Decoding is bit-exact with ``shared.quantization.codec``
also where the compiler contracts the multiply and the add into one FMA: factors are float16 or codes of at most 8
bits, so their product has at most 22 significant bits and is exact in float32 before the add rounds.

A tile is rows × bytes: at 4 bits a byte of codes is two columns, an "even" and an "odd" one; at 8 bits, as a head has
them, a byte is a column; at 2 and 3 bits every column is looked up alone, which is right but not tuned. Codebook
entries are gathered from memory: one row's 16 entries are 32 bytes and stay in the L1 cache. Sums run in an order that
depends on the shape alone.

Symbols: r row (out_features) · c column (in_features) · g ``GROUP_SIZE`` · t token · j sensitive value. ``lut``,
``scale``, ``bias`` are None where the weight has none; ``LUT_STRIDE`` is 0 for a codebook that all rows share.
These functions are in Triton's language, which only looks like Python.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _code_at(codes, row_bytes_before, columns, inside, BITS: tl.constexpr):
    """Return the codes at ``columns`` of rows that begin at ``row_bytes_before``; a 3-bit code may span two bytes."""
    if BITS == 8:
        code = tl.load(codes + row_bytes_before + columns, mask=inside, other=0).to(tl.int32)
    else:
        position = columns * BITS
        first = row_bytes_before + (position >> 3)
        shift = position & 7
        word = tl.load(codes + first, mask=inside, other=0).to(tl.int32)
        if BITS == 3:
            spans = inside & (shift > 5)
            word |= tl.load(codes + first + 1, mask=spans, other=0).to(tl.int32) << 8
        code = (word >> shift) & ((1 << BITS) - 1)
    return code


@triton.jit
def _grouped(parts, rows, columns, groups, inside, GROUP_SIZE: tl.constexpr):
    """Return float32 scales or biases of the groups in which ``columns`` lie."""
    return tl.load(parts + rows * groups + columns // GROUP_SIZE, mask=inside, other=0).to(tl.float32)


@triton.jit
def _decoded(
    code, rows, columns, inside, lut, scale, bias, groups,
    LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr,
):  # fmt: skip
    """Return float32 weights; what stands outside ``inside`` has no meaning but is finite."""
    if lut is None:
        weight = code.to(tl.float32)
    else:
        weight = tl.load(lut + rows * LUT_STRIDE + code, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        weight = weight * _grouped(scale, rows, columns, groups, inside, GROUP_SIZE)
    if bias is not None:
        weight = weight + _grouped(bias, rows, columns, groups, inside, GROUP_SIZE)
    return weight


@triton.jit
def dequantize_pairs(
    codes, lut, scale, bias, out, row_count, column_count, row_bytes, groups,
    LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Decode a tile of 4-bit codes: ROWS × BYTES bytes to ROWS × 2·BYTES columns of ``out``."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    at = tl.program_id(1) * BYTES + tl.arange(0, BYTES)[None, :]
    inside = (rows < row_count) & (at < row_bytes)
    byte = tl.load(codes + rows * row_bytes + at, mask=inside, other=0).to(tl.int32)
    even = _decoded(byte & 15, rows, 2 * at, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
    has_odd = inside & (2 * at + 1 < column_count)
    odd = _decoded(byte >> 4, rows, 2 * at + 1, has_odd, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
    weight = tl.interleave(even.to(out.dtype.element_ty), odd.to(out.dtype.element_ty))
    columns = tl.program_id(1) * (2 * BYTES) + tl.arange(0, 2 * BYTES)[None, :]
    tl.store(out + rows * column_count + columns, weight, mask=(rows < row_count) & (columns < column_count))


@triton.jit
def dequantize_columns(
    codes, lut, scale, bias, out, row_count, column_count, row_bytes, groups,
    BITS: tl.constexpr, LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Decode a tile of ROWS × COLUMNS columns of any width."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (rows < row_count) & (columns < column_count)
    code = _code_at(codes, rows * row_bytes, columns, inside, BITS)
    weight = _decoded(code, rows, columns, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
    tl.store(out + rows * column_count + columns, weight.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def write_sparse(out, indices, values, count, BLOCK: tl.constexpr):
    """Overwrite ``out`` at flat ``indices`` with ``values``."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    index = tl.load(indices + j, mask=inside, other=0)
    tl.store(out + index, tl.load(values + j, mask=inside, other=0), mask=inside)


@triton.jit
def _half(words, BEHIND: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr):
    """Return the first or the second (``BEHIND`` = 1) of the two values that each word holds, as float32."""
    if WIDTH == 16:
        half = ((words >> (16 * BEHIND)) & 0xFFFF).to(tl.uint16)
    else:
        half = ((words >> (32 * BEHIND)) & 0xFFFFFFFF).to(tl.uint32)
    return half.to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def _into_token(sums, partial, token, LANES: tl.constexpr):
    """Add ``partial`` (rows,) to column ``token`` of ``sums`` (rows, LANES)."""
    return sums + tl.where(tl.arange(0, LANES)[None, :] == token, partial[:, None], 0.0)


@triton.jit
def _dense_pairs(
    sums, words, codes, lut, scale, bias, rows, row_count, row_bytes, groups, dtype: tl.constexpr,
    LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr,
    WIDTH: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Add the product with 4-bit weights of an even number of columns; ``words`` holds two inputs each."""
    for start in range(0, row_bytes, BYTES):
        at = start + tl.arange(0, BYTES)[None, :]
        inside = (rows < row_count) & (at < row_bytes)
        byte = tl.load(codes + rows * row_bytes + at, mask=inside, other=0).to(tl.int32)
        even = _decoded(byte & 15, rows, 2 * at, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
        odd = _decoded(byte >> 4, rows, 2 * at + 1, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
        for token in tl.static_range(TOKENS):
            # as wide as the tile although rows read the same: so no value has to change threads
            pair = tl.load(words + token * row_bytes + at + rows * 0, mask=inside, other=0)
            product = even * _half(pair, 0, WIDTH, dtype) + odd * _half(pair, 1, WIDTH, dtype)
            sums = _into_token(sums, tl.sum(product, axis=1), token, LANES)
    return sums


@triton.jit
def _dense_columns(
    sums, inputs, codes, lut, scale, bias, rows, row_count, column_count, row_bytes, groups,
    BITS: tl.constexpr, LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, TOKENS: tl.constexpr,
    LANES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add the product with weights of any width and number of columns."""
    for start in range(0, column_count, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)[None, :]
        inside = (rows < row_count) & (columns < column_count)
        code = _code_at(codes, rows * row_bytes, columns, inside, BITS)
        weight = _decoded(code, rows, columns, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
        for token in tl.static_range(TOKENS):
            value = tl.load(inputs + token * column_count + columns + rows * 0, mask=inside, other=0).to(tl.float32)
            sums = _into_token(sums, tl.sum(weight * value, axis=1), token, LANES)
    return sums


@triton.jit
def _sparse(
    sums, inputs, indices, row_starts, values, codes, lut, scale, bias, rows, row_count, column_count,
    row_bytes, groups,
    BITS: tl.constexpr, LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, TOKENS: tl.constexpr,
    LANES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Add what the sensitive values change, COUNT of each row at a time up to the longest row of the tile."""
    first = tl.load(row_starts + rows, mask=rows < row_count, other=0)
    after = tl.load(row_starts + rows + 1, mask=rows < row_count, other=0)
    longest = tl.max(tl.max(after - first, axis=1), axis=0)
    for start in range(0, longest, COUNT):
        j = first + start + tl.arange(0, COUNT)[None, :]
        inside = j < after
        columns = tl.load(indices + j, mask=inside, other=0) - rows * column_count
        columns = tl.where(inside, columns, 0).to(tl.int32)
        code = _code_at(codes, rows * row_bytes, columns, inside, BITS)
        weight = _decoded(code, rows, columns, inside, lut, scale, bias, groups, LUT_STRIDE, GROUP_SIZE)
        change = tl.load(values + j, mask=inside, other=0).to(tl.float32) - weight
        for token in tl.static_range(TOKENS):
            value = tl.load(inputs + token * column_count + columns, mask=inside, other=0).to(tl.float32)
            sums = _into_token(sums, tl.sum(change * value, axis=1), token, LANES)
    return sums


@triton.jit
def linear_small(
    inputs, words, codes, lut, scale, bias, indices, row_starts, values, added, out,
    row_count, column_count, row_bytes, groups,
    BITS: tl.constexpr, LUT_STRIDE: tl.constexpr, GROUP_SIZE: tl.constexpr, TOKENS: tl.constexpr,
    LANES: tl.constexpr, PAIRED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
    COUNT: tl.constexpr,
):  # fmt: skip
    """Multiply TOKENS inputs with ROWS rows of a packed weight, and write y (TOKENS, row_count).

    ``inputs`` (TOKENS, column_count); ``words``, where PAIRED, the same memory as integers of two inputs each;
    ``values`` is None where there are none or the dense part is wanted alone; ``added`` is the layer's bias or None;
    LANES is TOKENS rounded up to a power of two; SPAN is what a row's loop takes at once, in bytes where PAIRED and in
    columns elsewhere.
    """
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    sums = tl.zeros((ROWS, LANES), dtype=tl.float32)
    if PAIRED:
        sums = _dense_pairs(
            sums, words, codes, lut, scale, bias, rows, row_count, row_bytes, groups,
            inputs.dtype.element_ty, LUT_STRIDE, GROUP_SIZE, TOKENS, LANES, WIDTH, SPAN,
        )  # fmt: skip
    else:
        sums = _dense_columns(
            sums, inputs, codes, lut, scale, bias, rows, row_count, column_count, row_bytes, groups,
            BITS, LUT_STRIDE, GROUP_SIZE, TOKENS, LANES, SPAN,
        )  # fmt: skip
    if values is not None:
        sums = _sparse(
            sums, inputs, indices, row_starts, values, codes, lut, scale, bias, rows, row_count, column_count,
            row_bytes, groups, BITS, LUT_STRIDE, GROUP_SIZE, TOKENS, LANES, COUNT,
        )  # fmt: skip
    if added is not None:
        sums += tl.load(added + rows, mask=rows < row_count, other=0).to(tl.float32)
    tokens = tl.arange(0, LANES)[None, :]
    where = (rows < row_count) & (tokens < TOKENS)
    tl.store(out + tokens * row_count + rows, sums.to(out.dtype.element_ty), mask=where)
