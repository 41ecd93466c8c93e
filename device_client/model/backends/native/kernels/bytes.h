// Uniform codes of 8 bits, as embeddings and heads have them: decoding, and the product of one to a few tokens.
//
//     w[r, c] = code[r, c] * scale[r, c / g] + bias[r, c / g]
//     sum_c x[c] * w[r, c] = sum over groups of  scale * sum_c x[c] * (code - 128) + (bias + 128 * scale) * sum_c x[c]
//
// Around 128 the codes' sum is as small as the product: nothing is lost where a large offset cancels. There is no table
// to look up: loops over a row's bytes become vector instructions on any CPU that has them.
#pragma once

#include <vector>

#include "weight.h"

namespace {

bool is_uniform_bytes(const Weight& weight) { return weight.bits == 8 && !weight.lut && weight.groups; }

// The columns, scale and bias of one group of a row.
struct ByteGroup {
    int64_t begin, end;
    float scale, bias;

    ByteGroup(const Weight& weight, int64_t row, int64_t group)
        : begin(group * weight.group_size), end(begin + weight.group_size) {
        if (end > weight.columns) end = weight.columns;
        const int64_t at = row * weight.groups + group;
        scale = weight.scale ? half_to_float(weight.scale[at]) : 1.0f;
        bias = weight.bias ? half_to_float(weight.bias[at]) : 0.0f;
    }
};

// Decodes `count` codes to float32; without a bias none is added, so that a zero keeps its sign.
inline void decode_byte_run(const uint8_t* codes, int64_t count, const ByteGroup& group, bool has_bias, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = float(int32_t(codes[i])) * group.scale;
    if (!has_bias) return;
    for (int64_t i = 0; i < count; ++i) out[i] += group.bias;
}

inline void round_run(const float* values, int64_t count, int32_t format, uint16_t* out) {
    int64_t i = 0;
#ifdef HAS_AVX512
    for (; i + 16 <= count; i += 16) store_16(out + i, _mm512_loadu_ps(values + i), format);
#endif
    for (; i < count; ++i) out[i] = rounded<uint16_t>(values[i], format);
}

// Decodes one row to T: float, or the 16-bit pattern of `format`.
template <typename T> void decode_byte_row(const Weight& weight, int64_t row, int32_t format, T* out) {
    constexpr int64_t RUN = 256;
    const uint8_t* codes = weight.codes + row * weight.row_bytes;
    for (int64_t g = 0; g < weight.groups; ++g) {
        const ByteGroup group(weight, row, g);
        for (int64_t column = group.begin; column < group.end; column += RUN) {
            const int64_t count = group.end - column < RUN ? group.end - column : RUN;
            if constexpr (sizeof(T) == sizeof(float)) {
                decode_byte_run(codes + column, count, group, weight.bias, out + column);
            } else {
                float values[RUN];
                decode_byte_run(codes + column, count, group, weight.bias, values);
                round_run(values, count, format, out + column);
            }
        }
    }
}

// Inputs as float32, and the sum of each group's.
struct PlainInputs {
    int64_t columns, groups;
    std::vector<float> values;  // (tokens, columns)
    std::vector<float> sums;    // (tokens, groups)

    PlainInputs(const void* inputs, int32_t format, int64_t tokens, const Weight& weight)
        : columns(weight.columns),
          groups(weight.groups),
          values(size_t(tokens * columns)),
          sums(size_t(tokens * groups)) {
        for (int64_t i = 0; i < tokens * columns; ++i) values[size_t(i)] = load(inputs, format, i);
        for (int64_t i = 0; i < tokens * columns; ++i) {
            sums[size_t(i / columns * groups + i % columns / weight.group_size)] += values[size_t(i)];
        }
    }
};

// The dot products of some rows with TOKENS inputs each.
struct ByteDot {
    using Inputs = PlainInputs;
    static constexpr bool USES_TABLES = false;
    static constexpr int WIDTH = 16;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const float (*)[256], const PlainInputs& x,
              int64_t first, float (*sums)[TOKENS]) const {
        int64_t r = 0;
        for (; r + 4 <= count; r += 4) some<TOKENS, 4>(weight, row + r, x, first, sums + r);
        for (; r < count; ++r) some<TOKENS, 1>(weight, row + r, x, first, sums + r);
    }

  private:
    template <int TOKENS, int COUNT>
    void some(const Weight& weight, int64_t row, const PlainInputs& x, int64_t first, float (*sums)[TOKENS]) const {
        for (int r = 0; r < COUNT; ++r) {
            for (int token = 0; token < TOKENS; ++token) sums[r][token] = 0;
        }
        for (int64_t g = 0; g < weight.groups; ++g) {
            float parts[COUNT][TOKENS];
            const ByteGroup columns(weight, row, g);
            add_up<TOKENS, COUNT>(weight, row, columns, x.values.data() + first * x.columns, parts);
            for (int r = 0; r < COUNT; ++r) {
                const ByteGroup group(weight, row + r, g);
                const float centre = group.bias + 128 * group.scale;
                for (int token = 0; token < TOKENS; ++token) {
                    const float sum = x.sums[size_t((first + token) * x.groups + g)];
                    sums[r][token] += parts[r][token] * group.scale + sum * centre;
                }
            }
        }
    }

#ifdef HAS_AVX512
    static __m512 centred(const uint8_t* codes, __mmask16 mask) {
        const __m128i bytes = _mm_xor_si128(_mm_maskz_loadu_epi8(mask, codes), _mm_set1_epi8(char(0x80)));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }

    template <int TOKENS, int COUNT>
    static void add_up(const Weight& weight, int64_t row, const ByteGroup& group, const float* inputs,
                       float (*parts)[TOKENS]) {
        __m512 total[COUNT][TOKENS] = {};
        const uint8_t* codes = weight.codes + row * weight.row_bytes;
        for (int64_t column = group.begin; column < group.end; column += WIDTH) {
            const int64_t left = group.end - column;
            const __mmask16 mask = left >= WIDTH ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
            __m512 input[TOKENS];
            for (int token = 0; token < TOKENS; ++token) {
                input[token] = _mm512_maskz_loadu_ps(mask, inputs + token * weight.columns + column);
            }
            for (int r = 0; r < COUNT; ++r) {
                const uint8_t* own = codes + r * weight.row_bytes + column;
                _mm_prefetch(reinterpret_cast<const char*>(own + COUNT * weight.row_bytes), _MM_HINT_T0);
                const __m512 code = centred(own, mask);
                for (int token = 0; token < TOKENS; ++token) {
                    total[r][token] = _mm512_fmadd_ps(code, input[token], total[r][token]);
                }
            }
        }
        for (int r = 0; r < COUNT; ++r) {
            for (int token = 0; token < TOKENS; ++token) parts[r][token] = _mm512_reduce_add_ps(total[r][token]);
        }
    }
#else
    template <int TOKENS, int COUNT>
    static void add_up(const Weight& weight, int64_t row, const ByteGroup& group, const float* inputs,
                       float (*parts)[TOKENS]) {
        for (int r = 0; r < COUNT; ++r) {
            const uint8_t* codes = weight.codes + (row + r) * weight.row_bytes;
            for (int token = 0; token < TOKENS; ++token) {
                parts[r][token] = sum_of(codes, inputs + token * weight.columns, group);
            }
        }
    }

    static float sum_of(const uint8_t* codes, const float* inputs, const ByteGroup& group) {
        float lanes[WIDTH] = {}, sum = 0;
        int64_t column = group.begin;
        for (; column + WIDTH <= group.end; column += WIDTH) {
            for (int lane = 0; lane < WIDTH; ++lane) {
                lanes[lane] += float(int32_t(codes[column + lane]) - 128) * inputs[column + lane];
            }
        }
        for (int lane = 0; column < group.end; ++column, ++lane) {
            lanes[lane] += float(int32_t(codes[column]) - 128) * inputs[column];
        }
        for (float lane : lanes) sum += lane;
        return sum;
    }
#endif
};

}  // namespace
