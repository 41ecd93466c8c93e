// The fused product of one to a few tokens, from the codes: W is never written.
//
//     y[t, r] = sum_c x[t, c] * w[r, c]  +  sum_j x[t, col_j] * (value_j - w[r, col_j])  +  b[r]        Equation 24
//
// Accumulates in float32. Every row is the work of one thread, so results do not depend on the number of threads.
#pragma once

#include <vector>

#include "bytes.h"
#include "dequantize.h"
#include "shuffled.h"

namespace {

constexpr int ROWS = 4;  // that share one loading of the inputs

#ifdef HAS_AVX512
// Whether a lane of 8 columns never crosses a group's border, and a block of 128 holds whole groups or lies in one.
bool has_wide_dot(const Weight& weight) {
    if (weight.bits != 4) return false;
    const int64_t size = weight.group_size;
    return !weight.groups || size % BLOCK == 0 || (size % 8 == 0 && BLOCK % size == 0);
}

// One scale or bias per lane of a block, `fallback` where there is none.
__m512 lanes_of(const uint16_t* grouped, const Weight& weight, int64_t row, int64_t block, float fallback) {
    if (!grouped) return _mm512_set1_ps(fallback);
    const uint16_t* first = grouped + row * weight.groups + block * BLOCK / weight.group_size;
    if (weight.group_size >= BLOCK) return _mm512_set1_ps(half_to_float(*first));
    const int64_t left = weight.groups - block * BLOCK / weight.group_size;
    const int64_t held = BLOCK / weight.group_size < left ? BLOCK / weight.group_size : left;
    const __m512 values = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16((1u << held) - 1), first));
    const __m512i lane = first_16();
    const unsigned shift = unsigned(__builtin_ctzll(uint64_t(weight.group_size)) - 3);
    return _mm512_permutexvar_ps(_mm512_srl_epi32(lane, _mm_cvtsi32_si128(int(shift))), values);
}

// COUNT dot products with TOKENS inputs each. With groups: sum over groups of scale·Σ table[code]·x + bias·Σ x.
template <int TOKENS, int COUNT, bool GROUPED>
void dot_wide(const Weight& weight, int64_t row, const float (*tables)[256], const Shuffled& x, int64_t first,
              float (*sums)[TOKENS]) {
    __m512 table[COUNT], total[COUNT][TOKENS] = {};
    for (int r = 0; r < COUNT; ++r) table[r] = _mm512_loadu_ps(tables[r]);
    const uint8_t* codes = weight.codes + row * weight.row_bytes;
    const float* inputs = x.values.data() + first * x.blocks * BLOCK;
    for (int64_t block = 0; block < x.blocks; ++block) {
        const int64_t left = weight.row_bytes - block * 64;
        const __mmask64 mask = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
        __m512i words[COUNT];
        __m512 part[COUNT][TOKENS];
        for (int r = 0; r < COUNT; ++r) {
            const uint8_t* own = codes + r * weight.row_bytes + block * 64;
            _mm_prefetch(reinterpret_cast<const char*>(own + COUNT * weight.row_bytes), _MM_HINT_T0);
            words[r] = _mm512_maskz_loadu_epi8(mask, own);
            for (int token = 0; token < TOKENS; ++token) {
                part[r][token] = GROUPED ? _mm512_setzero_ps() : total[r][token];
            }
        }
        for (int j = 0; j < 8; ++j) {
            __m512 input[TOKENS];
            for (int token = 0; token < TOKENS; ++token) {
                input[token] = _mm512_loadu_ps(inputs + (token * x.blocks + block) * BLOCK + j * LANES);
            }
            for (int r = 0; r < COUNT; ++r) {  // a word's index is its low 4 bits
                const __m512 value = _mm512_permutexvar_ps(words[r], table[r]);
                words[r] = _mm512_srli_epi32(words[r], 4);
                for (int token = 0; token < TOKENS; ++token) {
                    part[r][token] = _mm512_fmadd_ps(value, input[token], part[r][token]);
                }
            }
        }
        for (int r = 0; r < COUNT; ++r) {
            if (!GROUPED) {
                for (int token = 0; token < TOKENS; ++token) total[r][token] = part[r][token];
                continue;
            }
            const __m512 scale = lanes_of(weight.scale, weight, row + r, block, 1.0f);
            const __m512 bias = lanes_of(weight.bias, weight, row + r, block, 0.0f);
            for (int token = 0; token < TOKENS; ++token) {
                const float* input_sums = x.sums.data() + ((first + token) * x.blocks + block) * LANES;
                total[r][token] = _mm512_fmadd_ps(part[r][token], scale, total[r][token]);
                total[r][token] = _mm512_fmadd_ps(_mm512_loadu_ps(input_sums), bias, total[r][token]);
            }
        }
    }
    for (int r = 0; r < COUNT; ++r) {
        for (int token = 0; token < TOKENS; ++token) sums[r][token] = _mm512_reduce_add_ps(total[r][token]);
    }
}

// The dot products of `count` rows.
struct WideDot {
    using Inputs = Shuffled;
    static constexpr bool USES_TABLES = true;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const float (*tables)[256], const Shuffled& x,
              int64_t first, float (*sums)[TOKENS]) {
        if (count == ROWS) return some<TOKENS, ROWS>(weight, row, tables, x, first, sums);
        for (int64_t r = 0; r < count; ++r) some<TOKENS, 1>(weight, row + r, tables + r, x, first, sums + r);
    }

  private:
    template <int TOKENS, int COUNT>
    void some(const Weight& weight, int64_t row, const float (*tables)[256], const Shuffled& x, int64_t first,
              float (*sums)[TOKENS]) {
        if (weight.groups) {
            dot_wide<TOKENS, COUNT, true>(weight, row, tables, x, first, sums);
        } else {
            dot_wide<TOKENS, COUNT, false>(weight, row, tables, x, first, sums);
        }
    }
};
#endif

// The same for any bits and any groups: each row is decoded to float32.
struct PortableDot {
    using Inputs = Shuffled;
    static constexpr bool USES_TABLES = false;

    std::vector<float> decoded;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const float (*)[256], const Shuffled& x,
              int64_t first, float (*sums)[TOKENS]) {
        decoded.resize(size_t(x.blocks * BLOCK));  // zeros behind the last column
        for (int64_t r = 0; r < count; ++r) {
            decode_row(weight, row + r, FLOAT32, decoded.data());
            for (int token = 0; token < TOKENS; ++token) {
                sums[r][token] = dot(x.values.data() + (first + token) * x.blocks * BLOCK, x.blocks);
            }
        }
    }

    float dot(const float* inputs, int64_t blocks) const {
        float lanes[LANES] = {}, sum = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            for (int code = 0; code < 8; ++code) {
                for (int lane = 0; lane < LANES; ++lane) {
                    lanes[lane] += decoded[size_t(block * BLOCK + lane * 8 + code)] *
                                   inputs[block * BLOCK + code * LANES + lane];
                }
            }
        }
        for (float lane : lanes) sum += lane;
        return sum;
    }
};

// What the sensitive values of one row change in the product with one token; what they replace is rounded to `format`.
float correction(const Weight& weight, const Sparse& sparse, int32_t format, int64_t row, const void* inputs,
                 int64_t token) {
    float sum = 0;
    for (int32_t j = sparse.row_starts[row]; j < sparse.row_starts[row + 1]; ++j) {
        const int64_t column = sparse.indices[j] - (sparse.first_row + row) * weight.columns;
        const float change = load(sparse.values, format, j) - load(sparse.replaced, format, j);
        sum += load(inputs, format, token * weight.columns + column) * change;
    }
    return sum;
}

template <typename Dot, int TOKENS>
void multiply(const Weight& weight, const Sparse& sparse, const typename Dot::Inputs& x, const void* inputs,
              const void* bias, void* out, int32_t format, int64_t first, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Dot dot;
        float tables[ROWS][256], sums[ROWS][TOKENS];
#pragma omp for schedule(static)
        for (int64_t row = 0; row < weight.rows; row += ROWS) {
            const int64_t count = weight.rows - row < ROWS ? weight.rows - row : ROWS;
            for (int64_t r = 0; Dot::USES_TABLES && r < count; ++r) read_table(weight, row + r, tables[r]);
            dot.template rows<TOKENS>(weight, row, count, tables, x, first, sums);
            for (int64_t r = 0; r < count; ++r) {
                for (int token = 0; token < TOKENS; ++token) {
                    float sum = sums[r][token] + correction(weight, sparse, format, row + r, inputs, first + token);
                    if (bias) sum += load(bias, format, row + r);
                    store(out, format, (first + token) * weight.rows + row + r, sum);
                }
            }
        }
    }
}

template <typename Dot>
void multiply_all(const Weight& weight, const Sparse& sparse, const void* inputs, const void* bias, void* out,
                  int64_t tokens, int32_t format, int threads) {
    const typename Dot::Inputs x(inputs, format, tokens, weight);
    int64_t first = 0;
    for (; first + 4 <= tokens; first += 4) {
        multiply<Dot, 4>(weight, sparse, x, inputs, bias, out, format, first, threads);
    }
    for (; first + 2 <= tokens; first += 2) {
        multiply<Dot, 2>(weight, sparse, x, inputs, bias, out, format, first, threads);
    }
    for (; first < tokens; ++first) multiply<Dot, 1>(weight, sparse, x, inputs, bias, out, format, first, threads);
}

void linear_small(const Weight& weight, const Sparse& sparse, const void* inputs, const void* bias, void* out,
                  int64_t tokens, int32_t format, int threads) {
    if (is_uniform_bytes(weight)) {
        multiply_all<ByteDot>(weight, sparse, inputs, bias, out, tokens, format, threads);
        return;
    }
#ifdef HAS_AVX512
    if (has_wide_dot(weight)) {
        multiply_all<WideDot>(weight, sparse, inputs, bias, out, tokens, format, threads);
        return;
    }
#endif
    multiply_all<PortableDot>(weight, sparse, inputs, bias, out, tokens, format, threads);
}

}  // namespace
