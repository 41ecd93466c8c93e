// The fused product of one to a few tokens, from the codes: W is never written.
//
//     y[t, r] = sum_c x[t, c] * w[r, c]  +  sum_j x[t, col_j] * (value_j - w[r, col_j])  +  b[r]        Equation 24
//
// Accumulates in float32. Every row is the work of one thread, so results do not depend on the number of threads.
#pragma once

#include <algorithm>

#include "bytes.h"
#include "code_products.h"
#include "dequantize.h"
#include "shuffled.h"

namespace {

constexpr int64_t SOME_ROWS = 32;  // that a thread takes at a time

// Whether a lane of 8 columns never crosses a group's border, and a block of 128 holds whole groups or lies in one.
bool has_wide_dot(const Weight& weight) {
    if (weight.bits != 4) return false;
    const int64_t size = weight.group_size;
    return !weight.groups || size % BLOCK == 0 || (size % 8 == 0 && BLOCK % size == 0);
}

// One scale or bias per lane of a block, `fallback` where there is none.
inline Lanes lanes_of(const uint16_t* grouped, const Weight& weight, int64_t row, int64_t block, float fallback) {
    if (!grouped) return Lanes::of(fallback);
    const int64_t group = block * BLOCK / weight.group_size, left = weight.groups - group;
    const uint16_t* first = grouped + row * weight.groups + group;
    if (weight.group_size >= BLOCK) return Lanes::of(half_to_float(*first));
    float values[LANES] = {};
    const int64_t lanes = weight.group_size / 8, held = std::min(BLOCK / weight.group_size, left);
    for (int64_t i = 0; i < held; ++i) {
        const float value = half_to_float(first[i]);
        for (int64_t lane = i * lanes; lane < (i + 1) * lanes; ++lane) values[lane] = value;
    }
    return Lanes::load(values);
}

// Dot products of rows of 4-bit codes. With groups: sum over groups of scale·Σ table[code]·x + bias·Σ x.
struct WideDot {
    using Inputs = Shuffled;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const Shuffled& x, int64_t first,
              float (*sums)[TOKENS]) {
        constexpr int AT_ONCE = rows_at_once<TOKENS>();
        int64_t r = 0;
        for (; r + AT_ONCE <= count; r += AT_ONCE) some<TOKENS, AT_ONCE>(weight, row + r, x, first, sums + r);
        for (; r < count; ++r) some<TOKENS, 1>(weight, row + r, x, first, sums + r);
    }

  private:
    template <int TOKENS, int COUNT>
    static void some(const Weight& weight, int64_t row, const Shuffled& x, int64_t first, float (*sums)[TOKENS]) {
        if (weight.groups) {
            add_up<TOKENS, COUNT, true>(weight, row, x, first, sums);
        } else {
            add_up<TOKENS, COUNT, false>(weight, row, x, first, sums);
        }
    }

    template <int TOKENS, int COUNT, bool GROUPED>
    static void add_up(const Weight& weight, int64_t row, const Shuffled& x, int64_t first, float (*sums)[TOKENS]) {
        alignas(64) char room[COUNT * sizeof(Table)];
        Table* tables = reinterpret_cast<Table*>(room);
        for (int r = 0; r < COUNT; ++r) new (tables + r) Table(table_of_halves(weight, row + r));
        Lanes total[COUNT][TOKENS];
        for (auto& of_row : total) std::fill(of_row, of_row + TOKENS, Lanes::of(0));
        const uint8_t* codes = weight.codes + row * weight.row_bytes;
        const float* inputs = x.values + first * x.blocks * BLOCK;
        for (int64_t block = 0; block < x.blocks; ++block) {
            const CodeBlock<COUNT> some_codes(codes, weight.row_bytes, block * CODE_BYTES);
            for (int r = 0; r < COUNT; ++r) __builtin_prefetch(some_codes.rows[r] + FETCHED_AHEAD);
            if (!GROUPED) {
                add_products<COUNT, TOKENS>(some_codes, tables, inputs + block * BLOCK, x.blocks * BLOCK, total);
                continue;
            }
            Lanes part[COUNT][TOKENS];
            for (auto& of_row : part) std::fill(of_row, of_row + TOKENS, Lanes::of(0));
            add_products<COUNT, TOKENS>(some_codes, tables, inputs + block * BLOCK, x.blocks * BLOCK, part);
            for (int r = 0; r < COUNT; ++r) {
                const Lanes scale = lanes_of(weight.scale, weight, row + r, block, 1.0f);
                const Lanes bias = lanes_of(weight.bias, weight, row + r, block, 0.0f);
                for (int token = 0; token < TOKENS; ++token) {
                    const Lanes inputs_added = Lanes::load(x.sums + ((first + token) * x.blocks + block) * LANES);
                    Lanes& sum = total[r][token];
                    sum = sum.add_product(part[r][token], scale).add_product(inputs_added, bias);
                }
            }
        }
        sum_all_lanes<COUNT * TOKENS>(total[0], sums[0]);
    }
};

// The same for any bits and any groups: each row is decoded to float32.
struct DecodedDot {
    using Inputs = Shuffled;

    template <int TOKENS>
    void rows(const Weight& weight, int64_t row, int64_t count, const Shuffled& x, int64_t first,
              float (*sums)[TOKENS]) const {
        static thread_local KeptArray<float> room;
        float* decoded = room.of(x.blocks * BLOCK);
        std::fill(decoded, decoded + x.blocks * BLOCK, 0.0f);  // behind the last column, too
        for (int64_t r = 0; r < count; ++r) {
            decode_row(weight, row + r, FLOAT32, decoded);
            for (int token = 0; token < TOKENS; ++token) {
                sums[r][token] = dot(decoded, x.values + (first + token) * x.blocks * BLOCK, x.blocks);
            }
        }
    }

  private:
    static float dot(const float* decoded, const float* inputs, int64_t blocks) {
        float lanes[LANES] = {}, sum = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            for (int code = 0; code < 8; ++code) {
                for (int lane = 0; lane < LANES; ++lane) {
                    lanes[lane] += decoded[block * BLOCK + lane * 8 + code] *
                                   inputs[block * BLOCK + code * LANES + lane];
                }
            }
        }
        for (float lane : lanes) sum += lane;
        return sum;
    }
};

// Adds what the sensitive values of some rows change in their products with TOKENS tokens, from token `first` on. A
// position's row is found by a product in double precision: half a column added, it lies far from a whole number.
template <int TOKENS>
void add_changes(const Weight& weight, const Sparse& sparse, int32_t format, int64_t begin, int64_t count,
                 const void* inputs, int64_t first, float (*sums)[TOKENS]) {
    const int32_t next = sparse.row_starts[begin], stop = sparse.row_starts[begin + count];
    if (next == stop) return;
    float changes[SOME_ROWS][TOKENS] = {};
    const int64_t origin = (sparse.first_row + begin) * weight.columns;
    const double rows_per_column = 1.0 / double(weight.columns);
    for (int32_t j = next; j < stop; ++j) {
        const int64_t at = sparse.indices[j] - origin, row = int64_t((double(at) + 0.5) * rows_per_column);
        const int64_t column = at - row * weight.columns;
        const float change = load(sparse.values, format, j) - load(sparse.replaced, format, j);
        for (int token = 0; token < TOKENS; ++token) {
            changes[row][token] += load(inputs, format, (first + token) * weight.columns + column) * change;
        }
    }
    for (int64_t r = 0; r < count; ++r) {
        for (int token = 0; token < TOKENS; ++token) sums[r][token] += changes[r][token];
    }
}

// The products of up to SOME_ROWS rows with TOKENS tokens, from token `first` on.
template <int TOKENS, typename Dot>
void multiply_rows(Dot& dot, const Product& product, const typename Dot::Inputs& x, const void* inputs, int32_t format,
                   int64_t begin, int64_t count, int64_t first, float (*sums)[TOKENS]) {
    dot.template rows<TOKENS>(*product.weight, begin, count, x, first, sums);
    add_changes<TOKENS>(*product.weight, *product.sparse, format, begin, count, inputs, first, sums);
    if (!product.bias) return;
    for (int64_t r = 0; r < count; ++r) {
        for (int token = 0; token < TOKENS; ++token) sums[r][token] += load(product.bias, format, begin + r);
    }
}

template <typename Dot, int TOKENS>
void multiply(const Product& product, const typename Dot::Inputs& x, const void* inputs, int32_t format, int64_t first,
              int threads) {
    const int64_t rows = product.weight->rows;
#pragma omp parallel num_threads(threads)
    {
        Dot dot;
        float sums[SOME_ROWS][TOKENS];
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row += SOME_ROWS) {
            const int64_t count = rows - row < SOME_ROWS ? rows - row : SOME_ROWS;
            multiply_rows<TOKENS>(dot, product, x, inputs, format, row, count, first, sums);
            for (int64_t r = 0; r < count; ++r) {
                for (int token = 0; token < TOKENS; ++token) {
                    store(product.out, format, (first + token) * rows + row + r, sums[r][token]);
                }
            }
        }
    }
}

template <typename Dot>
void multiply_all(const Product& product, const void* inputs, int64_t tokens, int32_t format, int threads) {
    static thread_local KeptArray<float> room;
    typename Dot::Inputs x(room, *product.weight, tokens);
    const int64_t columns = product.weight->columns;
    for (int64_t token = 0; token < tokens; ++token) {
        x.lay(token, columns, [&](int64_t column) { return load(inputs, format, token * columns + column); });
    }
    int64_t first = 0;
    for (; first + 4 <= tokens; first += 4) multiply<Dot, 4>(product, x, inputs, format, first, threads);
    for (; first + 2 <= tokens; first += 2) multiply<Dot, 2>(product, x, inputs, format, first, threads);
    for (; first < tokens; ++first) multiply<Dot, 1>(product, x, inputs, format, first, threads);
}

// Does work(Dot()) with what multiplies a weight by shuffled inputs.
template <typename Work> void with_shuffled_dot(const Weight& weight, Work work) {
    if (has_wide_dot(weight)) return work(WideDot());
    work(DecodedDot());
}

// Does work(Dot()) with what multiplies a weight.
template <typename Work> void with_dot(const Weight& weight, Work work) {
    if (is_uniform_bytes(weight)) return work(ByteDot());
    with_shuffled_dot(weight, work);
}

void linear_small(const Product& product, const void* inputs, int64_t tokens, int32_t format, int threads) {
    with_dot(*product.weight, [&](auto dot) { multiply_all<decltype(dot)>(product, inputs, tokens, format, threads); });
}

}  // namespace
