// A packed weight, and what stands at one place of it.
//
//     w[r, c] = lut[r or 0, code[r, c]] * scale[r, c / g] + bias[r, c / g]        (shared/quantization/codec.py)
#pragma once

#include "numbers.h"

extern "C" {

struct Weight {
    const uint8_t* codes;   // (rows, row_bytes)
    const uint16_t* lut;    // float16 (lut_rows, 2^bits), or null
    const uint16_t* scale;  // float16 (rows, groups), or null
    const uint16_t* bias;   // float16 (rows, groups), or null
    const float* largest;   // (rows): the largest value of any code of a row, without its sign; null where not needed
    int64_t rows, columns, row_bytes, lut_rows, group_size, groups;
    int32_t bits;
};

struct Sparse {
    const int32_t* row_starts;  // (rows + 1), of the rows that `Weight` describes
    const int32_t* indices;     // flat positions in the whole weight, ascending
    const void* values;         // in the compute format, as many as indices
    const void* replaced;       // likewise: what their codes stand for
    int64_t first_row;          // of the rows that `Weight` describes
};

// A weight of several that are multiplied with the same inputs.
struct Product {
    const Weight* weight;
    const Sparse* sparse;
    const void* bias;  // (rows), or null
    void* out;         // (tokens, rows)
};
}

namespace {

int code_at(const Weight& weight, int64_t row, int64_t column) {
    const uint8_t* codes = weight.codes + row * weight.row_bytes;
    const int64_t bit = column * weight.bits;
    uint32_t word = codes[bit >> 3];
    if ((bit & 7) + weight.bits > 8) word |= uint32_t(codes[(bit >> 3) + 1]) << 8;
    return int(word >> (bit & 7) & ((1u << weight.bits) - 1));
}

#ifdef HAS_AVX512
// The values of one row's 4-bit codes, before group scales.
inline __m512 table_of(const Weight& weight, int64_t row) {
    if (!weight.lut) return _mm512_cvtepi32_ps(first_16());
    const uint16_t* lut = weight.lut + (weight.lut_rows == 1 ? 0 : row) * 16;
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lut)));
}
#endif

// The values of one row's 4-bit codes, before group scales, in float16.
inline const uint16_t* table_of_halves(const Weight& weight, int64_t row) {
    static const uint16_t WHOLE_NUMBERS[16] = {0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700,
                                               0x4800, 0x4880, 0x4900, 0x4980, 0x4a00, 0x4a80, 0x4b00, 0x4b80};
    if (!weight.lut) return WHOLE_NUMBERS;
    return weight.lut + (weight.lut_rows == 1 ? 0 : row) * 16;
}

// The values of one row's codes, before group scales: 2^bits float32.
void read_table(const Weight& weight, int64_t row, float* table) {
#ifdef HAS_AVX512
    if (weight.bits == 4) return _mm512_storeu_ps(table, table_of(weight, row));
#endif
    const int size = 1 << weight.bits;
    const uint16_t* lut = weight.lut ? weight.lut + (weight.lut_rows == 1 ? 0 : row) * size : nullptr;
    for (int code = 0; code < size; ++code) table[code] = lut ? half_to_float(lut[code]) : float(code);
}

float grouped(const Weight& weight, int64_t row, int64_t column, float value) {
    if (!weight.groups) return value;
    const int64_t group = row * weight.groups + column / weight.group_size;
    if (weight.scale) value = value * half_to_float(weight.scale[group]);
    if (weight.bias) value = value + half_to_float(weight.bias[group]);
    return value;
}

#ifdef HAS_AVX512
// 32 values of 16 bits from 16 bytes: the table lies in the register twice, so that index bit 4 does not matter.
inline __m512i look_up_32(const uint8_t* bytes, __m512i table) {
    const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_permutexvar_epi16(_mm512_or_si512(byte, _mm512_slli_epi32(byte, 12)), table);
}

// 16 float32 values from 8 bytes; a lane's index is its low 4 bits.
inline __m512 look_up_16(const uint8_t* bytes, __m512 table) {
    const __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_permutexvar_ps(_mm512_or_si512(byte, _mm512_slli_epi64(byte, 28)), table);
}

// A table of 16 values of 16 bits, twice in a register.
inline __m512i twice(const uint16_t* table) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    return _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
}
#endif

}  // namespace
