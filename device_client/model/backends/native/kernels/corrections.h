// What the sensitive values of a panel change in its product with a few tokens:
//
//     sum_j x[t, col_j] * (value_j - w[r, col_j])                                                      of Equation 24
#pragma once

#include "digits.h"

#ifdef HAS_TILES

namespace {

// The bfloat16 values at `at` of a base, as float32; reads the aligned pair that each belongs to.
inline __m512 gather_bfloat16(const void* base, __m512i at, __mmask16 lanes) {
    const __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, _mm512_srli_epi32(at, 1), base, 4);
    const __m512i odd = _mm512_slli_epi32(_mm512_and_si512(at, _mm512_set1_epi32(1)), 4);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_srlv_epi32(pairs, odd), 16));
}

// at / columns, of flat positions within a panel of at most 2^16 columns. With half a column added a quotient below 16 is
// at least 2^-17 away from a whole number; what float32 rounds off is at most 2^-19.
inline __m512i quotient(__m512i at, int64_t columns) {
    const __m512 middle = _mm512_add_ps(_mm512_cvtepi32_ps(at), _mm512_set1_ps(0.5f));
    return _mm512_cvttps_epi32(_mm512_mul_ps(middle, _mm512_set1_ps(1 / float(columns))));
}

// What the sensitive values of a panel change, added to its sums 16 values at a time, whatever their rows.
class Corrections {
    const Weight& weight;
    const Sparse& sparse;
    const uint16_t* inputs;
    const int64_t tokens;
    int64_t first_row = 0;
    int32_t next = 0, stop = 0;

  public:
    alignas(64) float sums[FEW_TOKENS][PANEL_ROWS];

    Corrections(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, int64_t tokens)
        : weight(weight), sparse(sparse), inputs(inputs), tokens(tokens) {}

    void begin(int64_t row) {
        first_row = row, next = sparse.row_starts[row], stop = sparse.row_starts[row + PANEL_ROWS];
    }

    // How often there is something to add.
    int64_t left() const { return (stop - next + 15) / 16; }

    void add_some() {
        const int32_t count = stop - next < 16 ? stop - next : 16;
        fetch_ahead();
        const __mmask16 held = __mmask16((1u << count) - 1);
        const __m512i origin = _mm512_set1_epi32(int32_t((sparse.first_row + first_row) * weight.columns));
        const __m512i at = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(held, sparse.indices + next), origin);
        const __m512i row = quotient(at, weight.columns);
        const __m512i column = _mm512_sub_epi32(at, _mm512_mullo_epi32(row, _mm512_set1_epi32(int32_t(weight.columns))));
        const __m512 change =
            _mm512_sub_ps(load_bfloat16(sparse.values, next, held), load_bfloat16(sparse.replaced, next, held));
        alignas(64) int32_t rows[16];
        alignas(64) float added[16];
        _mm512_store_si512(rows, row);
        for (int64_t token = 0; token < tokens; ++token) {
            const __m512 x = gather_bfloat16(inputs + token * weight.columns, column, held);
            _mm512_store_ps(added, _mm512_mul_ps(x, change));
            for (int32_t i = 0; i < count; ++i) sums[token][rows[i]] += added[i];
        }
        next += count;
    }

    // Fetches what will be added some panels later.
    void fetch_ahead() const {
        const int64_t later = next + 128;
        _mm_prefetch(reinterpret_cast<const char*>(sparse.indices + later), _MM_HINT_T0);
        _mm_prefetch(static_cast<const char*>(sparse.values) + 2 * later, _MM_HINT_T0);
        _mm_prefetch(static_cast<const char*>(sparse.replaced) + 2 * later, _MM_HINT_T0);
    }

    void write(const void* bias, uint16_t* out) const {
        for (int64_t token = 0; token < tokens; ++token) {
            __m512 sum = _mm512_load_ps(sums[token]);
            if (bias) sum = _mm512_add_ps(sum, load_bfloat16(bias, first_row, 0xffff));
            store_16(out + token * weight.rows + first_row, sum, BFLOAT16);
        }
    }
};

}  // namespace
#endif
