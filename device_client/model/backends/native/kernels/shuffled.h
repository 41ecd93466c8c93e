// Inputs as float32, in the order in which codes lie in vector registers.
//
// 128 columns are 64 bytes of codes, 16 lanes of 8 codes each. Step j multiplies the j-th code of every lane: so the
// input of column 128·b + 8·lane + j of a token stands at [b][j][lane]. Zeros behind the last column.
#pragma once

#include "kept_array.h"
#include "lanes.h"
#include "weight.h"

namespace {

constexpr int BLOCK = 128;  // columns

struct Shuffled {
    int64_t blocks;
    float* values;  // (tokens, blocks, 8, LANES)
    float* sums;    // (tokens, blocks, LANES): each lane's inputs added up

    Shuffled() = default;
    Shuffled(KeptArray<float>& room, const Weight& weight, int64_t tokens)
        : blocks((weight.columns + BLOCK - 1) / BLOCK) {
        values = room.of(tokens * blocks * (BLOCK + LANES));
        sums = values + tokens * blocks * BLOCK;
    }

    // Lays one token's inputs; `read` gives that of a column.
    template <typename Read> void lay(int64_t token, int64_t columns, Read read) {
        for (int64_t block = 0; block < blocks; ++block) {
            float* to = values + (token * blocks + block) * BLOCK;
            const int64_t first = block * BLOCK, held = columns - first;
            if (held >= BLOCK) {
                for (int lane = 0; lane < LANES; ++lane) {
                    for (int j = 0; j < 8; ++j) to[j * LANES + lane] = read(first + 8 * lane + j);
                }
            } else {
                std::memset(to, 0, BLOCK * sizeof(float));
                for (int64_t i = 0; i < held; ++i) to[i % 8 * LANES + i / 8] = read(first + i);
            }
            Lanes sum = Lanes::load(to);
            for (int j = 1; j < 8; ++j) sum = sum + Lanes::load(to + j * LANES);
            sum.store(sums + (token * blocks + block) * LANES);
        }
    }
};

}  // namespace
