// Inputs and weights as whole numbers, in digits of 8 bits: what the matrix unit multiplies without rounding.
//
//     number / unit = sum_i 256^i * digit_i,  -128 <= digit_i < 128        unit: a power of two, of a token or of a row
//
// The largest number of a token, or of a row, takes between a fourth and a half of what the digits hold. Then 3 digits
// are exactly an input in bfloat16 from 1/16384 of its token's largest on, 2 digits a weight from 1/64 of its row's largest
// on (that any code can stand for, in any group); smaller ones are off by at most 1/4194304, or 1/16384, of the largest.
//
// A byte of codes looks up a byte of digits, where a look-up of 16-bit values takes twice as long for half as many. So
// a block of a panel becomes 4 tiles:
//
//     weights   tile [row 16][byte 64], of even columns high and low digits, then of odd columns
//     inputs    tile [byte / 4][3 * token + digit][byte % 4], of even columns, then of odd columns
#pragma once

#include "panels.h"

#ifdef HAS_TILES
#include <cmath>

namespace {

constexpr int64_t INPUT_DIGITS = 3, WEIGHT_DIGITS = 2, FEW_TOKENS = 4;
constexpr int64_t TILE_BYTES = PANEL_ROWS * PANEL_ROW_BYTES;
constexpr float NO_LESS = 1e-30f;  // a token or row of less counts as if this were its largest

// 1 / unit of numbers up to `largest`, for so many digits.
inline __m512 scale_to(__m512 largest, int64_t digits) {
    const __m512 exponent = _mm512_getexp_ps(_mm512_max_ps(largest, _mm512_set1_ps(NO_LESS)));
    return _mm512_scalef_ps(_mm512_set1_ps(1), _mm512_sub_ps(_mm512_set1_ps(float(8 * digits - 3)), exponent));
}

// The DIGITS digits of 16 whole numbers: 16 bytes each, the lowest digit first.
template <int DIGITS> inline void to_digits(__m512 scaled, __m128i* digits) {
    constexpr int OFFSET = DIGITS == 3 ? 0x808080 : 0x8080;  // makes every digit positive, without carries
    const __m512i number = _mm512_add_epi32(_mm512_cvtps_epi32(scaled), _mm512_set1_epi32(OFFSET));
    for (int i = 0; i < DIGITS; ++i) {
        const __m128i byte = _mm512_cvtepi32_epi8(_mm512_srli_epi32(number, 8 * i));
        digits[i] = _mm_xor_si128(byte, _mm_set1_epi8(int8_t(0x80)));
    }
}

inline __m512 even_columns(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline __m512 odd_columns(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int32_t(0xffff0000))));
}

// The largest of some bfloat16 inputs, a multiple of 32, without their signs; infinite or not a number where one is.
inline float largest_of(const uint16_t* inputs, int64_t columns) {
    __m512i largest = _mm512_setzero_si512();
    const __m512i without_sign = _mm512_set1_epi16(0x7fff);
    for (int64_t column = 0; column < columns; column += 32) {
        const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(inputs + column), without_sign);
        largest = _mm512_max_epu16(largest, bits);
    }
    const __m512i wide = _mm512_max_epu32(_mm512_slli_epi32(largest, 16),
                                          _mm512_and_si512(largest, _mm512_set1_epi32(int32_t(0xffff0000))));
    return bits_to_float(_mm512_reduce_max_epu32(wide));
}

// A few tokens as digits, block by block of 128 columns, and the units of their numbers.
struct Digits {
    int8_t* packed;
    int64_t tokens;
    float units[FEW_TOKENS];  // not a number where one of the inputs is infinite or none

    static int64_t bytes(int64_t columns, int64_t tokens) { return columns * INPUT_DIGITS * tokens; }

    Digits(int8_t* packed, int64_t tokens) : packed(packed), tokens(tokens) {}

    void pack(const uint16_t* inputs, int64_t columns, int64_t token) {
        const float largest = largest_of(inputs, columns);
        const __m512 scale = scale_to(_mm512_set1_ps(largest), INPUT_DIGITS);
        const int64_t width = INPUT_DIGITS * tokens, tile = 16 * width;
        const __m512i places = _mm512_mullo_epi32(first_16(), _mm512_set1_epi32(int32_t(width)));
        int32_t* to = reinterpret_cast<int32_t*>(packed) + token * INPUT_DIGITS;
        for (int64_t column = 0; column < columns; column += PANEL_COLUMNS, to += 2 * tile) {
            alignas(64) __m128i digits[2][INPUT_DIGITS][4];  // of even columns and of odd ones
            for (int64_t i = 0; i < 4; ++i) {
                const __m512i pairs = _mm512_loadu_si512(inputs + column + 32 * i);
                const __m512 values[2] = {even_columns(pairs), odd_columns(pairs)};
                for (int odd = 0; odd < 2; ++odd) {
                    __m128i each[INPUT_DIGITS];
                    to_digits<INPUT_DIGITS>(_mm512_mul_ps(values[odd], scale), each);
                    for (int digit = 0; digit < INPUT_DIGITS; ++digit) digits[odd][digit][i] = each[digit];
                }
            }
            for (int odd = 0; odd < 2; ++odd) {
                for (int digit = 0; digit < INPUT_DIGITS; ++digit) {
                    const __m512i bytes = _mm512_load_si512(digits[odd][digit]);
                    _mm512_i32scatter_epi32(to + odd * tile + digit, places, bytes, 4);
                }
            }
        }
        units[token] = std::isfinite(largest) ? 1 / _mm512_cvtss_f32(scale) : NAN;
    }
};

// The digits of the values that a panel's codes stand for, and the units of its rows' numbers.
struct DigitTables {
    int64_t first_row = 0;
    alignas(64) float units[PANEL_ROWS];
    alignas(64) float scales[PANEL_ROWS];
    alignas(64) __m128i digits[PANEL_ROWS][WEIGHT_DIGITS];

    // Fetches what reading the tables of a panel will need.
    static void fetch(const Weight& weight, int64_t first_row) {
        if (first_row >= weight.rows) return;
        _mm_prefetch(reinterpret_cast<const char*>(weight.largest + first_row), _MM_HINT_T0);
        if (weight.lut_rows <= 1) return;
        for (int64_t r = 0; r < PANEL_ROWS; r += 2) {
            _mm_prefetch(reinterpret_cast<const char*>(weight.lut + 16 * (first_row + r)), _MM_HINT_T0);
        }
    }

    // Begins a panel.
    void begin(const Weight& weight, int64_t row) {
        first_row = row;
        const __m512 scale = scale_to(_mm512_loadu_ps(weight.largest + row), WEIGHT_DIGITS);
        _mm512_store_ps(scales, scale);
        _mm512_store_ps(units, _mm512_div_ps(_mm512_set1_ps(1), scale));
        read(weight, 0);
    }

    // Reads the tables that hold for a block.
    void read(const Weight& weight, int64_t block) {
        for (int64_t r = 0; r < PANEL_ROWS; ++r) {
            const __m512 values = widened(table_in_block(weight, first_row + r, block));
            to_digits<WEIGHT_DIGITS>(_mm512_mul_ps(values, _mm512_set1_ps(scales[r])), digits[r]);
        }
    }
};

// Decodes 4 rows of a block, from row FIRST on, to 4 tiles, and fetches what lies some blocks ahead. A look-up reads
// the low 6 bits of a byte: the table stands in the register four times, so that those of the other code do not matter.
template <int FIRST> inline void decode_digits(const uint8_t* codes, const DigitTables& tables, uint8_t* tiles) {
    for (int64_t r = FIRST; r < FIRST + 4; ++r) {
        const uint8_t* own = codes + r * PANEL_ROW_BYTES;
        uint8_t* to = tiles + r * PANEL_ROW_BYTES;
        _mm_prefetch(reinterpret_cast<const char*>(own + AHEAD), _MM_HINT_T1);
        const __m512i even = _mm512_loadu_si512(own), odd = _mm512_srli_epi16(even, 4);
        const __m512i low = _mm512_broadcast_i32x4(tables.digits[r][0]);
        const __m512i high = _mm512_broadcast_i32x4(tables.digits[r][1]);
        _mm512_store_si512(to, _mm512_permutexvar_epi8(even, high));
        _mm512_store_si512(to + TILE_BYTES, _mm512_permutexvar_epi8(even, low));
        _mm512_store_si512(to + 2 * TILE_BYTES, _mm512_permutexvar_epi8(odd, high));
        _mm512_store_si512(to + 3 * TILE_BYTES, _mm512_permutexvar_epi8(odd, low));
    }
}

}  // namespace
#endif
