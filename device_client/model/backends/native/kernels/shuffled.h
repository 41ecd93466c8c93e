// Inputs as float32, in the order in which codes lie in a vector register.
//
// 128 columns are 64 bytes of codes, 16 words of 8 codes each. Shifting a register of words by 4 bits brings the next
// code of every word to the front: so the input of column 128·b + 8·w + j of a token stands at [b][j][w]. Zeros behind
// the last column.
#pragma once

#include <vector>

#include "weight.h"

namespace {

constexpr int BLOCK = 128;  // columns
constexpr int LANES = 16;   // of a block, 8 columns each

struct Shuffled {
    int64_t blocks;
    std::vector<float> values;  // (tokens, blocks, 8, LANES)
    std::vector<float> sums;    // (tokens, blocks, LANES): each lane's inputs added up

    Shuffled(const void* inputs, int32_t format, int64_t tokens, const Weight& weight)
        : blocks((weight.columns + BLOCK - 1) / BLOCK),
          values(size_t(tokens * blocks * BLOCK)),
          sums(size_t(tokens * blocks * LANES)) {
        const int64_t columns = weight.columns;
        for (int64_t token = 0; token < tokens; ++token) {
            for (int64_t lane = 0; lane < blocks * LANES; ++lane) {
                float* first = values.data() + (token * blocks + lane / LANES) * BLOCK + lane % LANES;
                float* sum = sums.data() + token * blocks * LANES + lane;
                const int64_t held = columns - lane * 8 < 8 ? columns - lane * 8 : 8;
                for (int64_t j = 0; j < held; ++j) {
                    first[j * LANES] = load(inputs, format, token * columns + lane * 8 + j);
                    *sum += first[j * LANES];
                }
            }
        }
    }
};

}  // namespace
