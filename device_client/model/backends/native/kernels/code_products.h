// A block of 128 columns of some rows' 4-bit codes, multiplied with one to a few tokens.
//
//     sums[r][t] += code by code the products of a lane's 8 columns, in their order on every CPU
//
// A lane holds 4 bytes of a row's codes. Inputs lie as shuffled.h lays them, `next` from a token to the next one.
#pragma once

#include "lanes.h"

namespace {

// How many rows share one loading of the inputs: what registers hold. No result depends on it.
template <int TOKENS> constexpr int rows_at_once() {
#if defined(HAS_AVX512)
    return 4;
#elif defined(HAS_AVX2)
    return TOKENS == 1 ? 2 : 1;
#else
    return TOKENS <= 2 ? 2 : 1;
#endif
}

// Where each row's block begins, and how many bytes it has: 64, or fewer at a row's end.
template <int ROWS> struct CodeBlock {
    const uint8_t* rows[ROWS];
    int64_t bytes;

    CodeBlock(const uint8_t* codes, int64_t row_bytes, int64_t at)
        : bytes(row_bytes - at < CODE_BYTES ? row_bytes - at : CODE_BYTES) {
        for (int r = 0; r < ROWS; ++r) rows[r] = codes + r * row_bytes + at;
    }
};

// The same with zeros behind a row's end.
template <int ROWS> struct FilledBlock : CodeBlock<ROWS> {
    uint8_t copies[ROWS][CODE_BYTES] = {};

    explicit FilledBlock(const CodeBlock<ROWS>& block) : CodeBlock<ROWS>(block) {
        for (int r = 0; r < ROWS; ++r) {
            std::memcpy(copies[r], block.rows[r], size_t(block.bytes));
            this->rows[r] = copies[r];
        }
    }

    const CodeBlock<ROWS>& whole() {
        this->bytes = CODE_BYTES;
        return *this;
    }
};

#if defined(HAS_AVX512)

template <int ROWS, int TOKENS>
inline void add_products(const CodeBlock<ROWS>& codes, const Table* tables, const float* inputs, int64_t next,
                         Lanes (&sums)[ROWS][TOKENS]) {
    const __mmask64 held = ~__mmask64(0) >> (CODE_BYTES - codes.bytes);
    __m512i words[ROWS];
    for (int r = 0; r < ROWS; ++r) words[r] = _mm512_maskz_loadu_epi8(held, codes.rows[r]);
    for (int j = 0; j < 8; ++j) {
        Lanes input[TOKENS];
        for (int t = 0; t < TOKENS; ++t) input[t] = Lanes::load(inputs + t * next + j * LANES);
        for (int r = 0; r < ROWS; ++r) {  // a word's index is its low 4 bits
            const Lanes value{_mm512_permutexvar_ps(words[r], tables[r].values)};
            words[r] = _mm512_srli_epi32(words[r], 4);
            for (int t = 0; t < TOKENS; ++t) sums[r][t] = sums[r][t].add_product(value, input[t]);
        }
    }
}

#elif defined(HAS_AVX2)

// Of lanes 0 to 7, or 8 to 15.
template <int EIGHT, int ROWS, int TOKENS>
inline void add_products_of(const CodeBlock<ROWS>& codes, const Table* tables, const float* inputs, int64_t next,
                            Lanes (&sums)[ROWS][TOKENS]) {
    const __m256i by_byte =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i lanes_together = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), low_half = _mm256_set1_epi8(15);
    for (int r = 0; r < ROWS; ++r) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes.rows[r] + 32 * EIGHT));
        const __m256i sorted = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(bytes, by_byte), lanes_together);
        __m256i even[2], odd[2];  // bytes 0 and 2, 1 and 3 of each half
        for (int half = 0; half < 2; ++half) {
            const __m256i code = _mm256_and_si256(half ? _mm256_srli_epi16(sorted, 4) : sorted, low_half);
            const __m256i low = _mm256_shuffle_epi8(tables[r].low, code);
            const __m256i high = _mm256_shuffle_epi8(tables[r].high, code);
            even[half] = _mm256_unpacklo_epi8(low, high), odd[half] = _mm256_unpackhi_epi8(low, high);
        }
        for (int byte = 0; byte < 4; ++byte) {
            for (int half = 0; half < 2; ++half) {
                const __m256i both = byte % 2 ? odd[half] : even[half];
                const __m256 value =
                    _mm256_cvtph_ps(byte < 2 ? _mm256_castsi256_si128(both) : _mm256_extracti128_si256(both, 1));
                for (int t = 0; t < TOKENS; ++t) {
                    const __m256 input = _mm256_loadu_ps(inputs + t * next + (2 * byte + half) * LANES + 8 * EIGHT);
                    __m256& sum = EIGHT ? sums[r][t].high : sums[r][t].low;
                    sum = _mm256_fmadd_ps(value, input, sum);
                }
            }
        }
    }
}

template <int ROWS, int TOKENS>
inline void add_products(const CodeBlock<ROWS>& codes, const Table* tables, const float* inputs, int64_t next,
                         Lanes (&sums)[ROWS][TOKENS]) {
    if (codes.bytes % 32) {
        return add_products<ROWS, TOKENS>(FilledBlock<ROWS>(codes).whole(), tables, inputs, next, sums);
    }
    add_products_of<0>(codes, tables, inputs, next, sums);
    if (codes.bytes > 32) add_products_of<1>(codes, tables, inputs, next, sums);
}

#elif defined(HAS_NEON)

template <int ROWS, int TOKENS>
inline void add_products(const CodeBlock<ROWS>& given, const Table* tables, const float* inputs, int64_t next,
                         Lanes (&sums)[ROWS][TOKENS]) {
    if (given.bytes % 16) {
        return add_products<ROWS, TOKENS>(FilledBlock<ROWS>(given).whole(), tables, inputs, next, sums);
    }
    static const uint8_t BY_BYTE[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t by_byte = vld1q_u8(BY_BYTE);
    for (int r = 0; r < ROWS; ++r) {
        for (int four = 0; 16 * four < given.bytes; ++four) {
            const uint8x16_t sorted = vqtbl1q_u8(vld1q_u8(given.rows[r] + 16 * four), by_byte);
            float32x4_t values[2][4];
            for (int half = 0; half < 2; ++half) {
                const uint8x16_t code = half ? vshrq_n_u8(sorted, 4) : vandq_u8(sorted, vdupq_n_u8(15));
                const uint8x16_t low = vqtbl1q_u8(tables[r].low, code), high = vqtbl1q_u8(tables[r].high, code);
                const float16x8_t first = vreinterpretq_f16_u8(vzip1q_u8(low, high));
                const float16x8_t second = vreinterpretq_f16_u8(vzip2q_u8(low, high));
                values[half][0] = vcvt_f32_f16(vget_low_f16(first)), values[half][1] = vcvt_high_f32_f16(first);
                values[half][2] = vcvt_f32_f16(vget_low_f16(second)), values[half][3] = vcvt_high_f32_f16(second);
            }
            for (int j = 0; j < 8; ++j) {
                for (int t = 0; t < TOKENS; ++t) {
                    const float32x4_t input = vld1q_f32(inputs + t * next + j * LANES + 4 * four);
                    sums[r][t].part[four] = vfmaq_f32(sums[r][t].part[four], values[j % 2][j / 2], input);
                }
            }
        }
    }
}

#else

template <int ROWS, int TOKENS>
inline void add_products(const CodeBlock<ROWS>& codes, const Table* tables, const float* inputs, int64_t next,
                         Lanes (&sums)[ROWS][TOKENS]) {
    const FilledBlock<ROWS> filled(codes);
    for (int r = 0; r < ROWS; ++r) {
        for (int j = 0; j < 8; ++j) {
            Lanes value;
            for (int lane = 0; lane < LANES; ++lane) {
                value.all[lane] = tables[r].values[filled.rows[r][4 * lane + j / 2] >> 4 * (j % 2) & 15];
            }
            for (int t = 0; t < TOKENS; ++t) {
                sums[r][t] = sums[r][t].add_product(value, Lanes::load(inputs + t * next + j * LANES));
            }
        }
    }
}

#endif

}  // namespace
