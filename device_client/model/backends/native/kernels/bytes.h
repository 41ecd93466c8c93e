// Uniform codes of 8 bits, as embeddings and heads have them: decoding, and the product of one to a few tokens.
//
//     w[r, c] = code[r, c] * scale[r, c / g] + bias[r, c / g]
//     sum_c x[c] * w[r, c] = sum over groups of  scale * sum_c x[c] * (code - 128) + (bias + 128 * scale) * sum_c x[c]
//
// Around 128 the codes' sum is as small as the product: nothing is lost where a large offset cancels. There is no table
// to look up.
#pragma once

#include <algorithm>

#include "kept_array.h"
#include "lanes.h"
#include "weight.h"

namespace {

constexpr int64_t FETCHED_AHEAD = 8192;  // bytes of codes: what memory brings while those before are multiplied

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
    int64_t columns, groups, group_size;
    float* values;  // (tokens, columns)
    float* sums;    // (tokens, groups)

    PlainInputs() = default;
    PlainInputs(KeptArray<float>& room, const Weight& weight, int64_t tokens)
        : columns(weight.columns), groups(weight.groups), group_size(weight.group_size) {
        values = room.of(tokens * (columns + groups));
        sums = values + tokens * columns;
    }

    // Lays one token's inputs; `read` gives that of a column.
    template <typename Read> void lay(int64_t token, int64_t, Read read) {
        float* to = values + token * columns;
        for (int64_t column = 0; column < columns; ++column) to[column] = read(column);
        for (int64_t group = 0, first = 0; group < groups; ++group, first += group_size) {
            Lanes sum = Lanes::of(0);
            const int64_t end = first + group_size < columns ? first + group_size : columns;
            for (int64_t at = first; at < end; at += LANES) {
                sum = sum + (end - at >= LANES ? Lanes::load(to + at) : Lanes::load(to + at, end - at));
            }
            sums[token * groups + group] = sum_lanes(sum);
        }
    }
};

// The dot products of some rows with TOKENS inputs each.
struct ByteDot {
    using Inputs = PlainInputs;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const PlainInputs& x, int64_t first,
              float (*sums)[TOKENS]) const {
        for (int64_t r = 0; r < count; ++r) one<TOKENS>(weight, row + r, x, first, sums[r]);
    }

  private:
    static constexpr int CHAINS = 4;  // sums that do not wait for each other: of every fourth 16 columns

    template <int TOKENS>
    static void one(const Weight& weight, int64_t row, const PlainInputs& x, int64_t first, float (&sums)[TOKENS]) {
        std::fill(sums, sums + TOKENS, 0.0f);
        for (int64_t g = 0; g < weight.groups; ++g) {
            float parts[TOKENS];
            const ByteGroup group(weight, row, g);
            add_up<TOKENS>(weight, row, group, x.values + first * x.columns, parts);
            const float centre = group.bias + 128 * group.scale;
            for (int token = 0; token < TOKENS; ++token) {
                sums[token] += parts[token] * group.scale + x.sums[(first + token) * x.groups + g] * centre;
            }
        }
    }

    template <int TOKENS>
    static void add_up(const Weight& weight, int64_t row, const ByteGroup& group, const float* inputs,
                       float (&parts)[TOKENS]) {
        Lanes total[CHAINS][TOKENS];
        for (auto& chain : total) std::fill(chain, chain + TOKENS, Lanes::of(0));
        const uint8_t* codes = weight.codes + row * weight.row_bytes;
        int64_t column = group.begin;
        for (; column + CHAINS * LANES <= group.end; column += CHAINS * LANES) {
            __builtin_prefetch(codes + column + FETCHED_AHEAD);
            for (int chain = 0; chain < CHAINS; ++chain) {
                const Lanes code = Lanes::centred(codes + column + chain * LANES);
                for (int token = 0; token < TOKENS; ++token) {
                    const Lanes input = Lanes::load(inputs + token * weight.columns + column + chain * LANES);
                    total[chain][token] = total[chain][token].add_product(code, input);
                }
            }
        }
        for (int chain = 0; column < group.end; ++chain, column += LANES) {
            const int64_t held = group.end - column < LANES ? group.end - column : LANES;
            uint8_t last[LANES] = {};
            std::memcpy(last, codes + column, size_t(held));
            for (int token = 0; token < TOKENS; ++token) {
                const Lanes input = Lanes::load(inputs + token * weight.columns + column, held);
                total[chain][token] = total[chain][token].add_product(Lanes::centred(last), input);
            }
        }
        for (int token = 0; token < TOKENS; ++token) {
            parts[token] = sum_lanes((total[0][token] + total[1][token]) + (total[2][token] + total[3][token]));
        }
    }
};

}  // namespace
