// Attention of one token to the tokens before it and itself.
//
//     q', k' = rotate(q), rotate(k):  x * cos + (-x_2, x_1) * sin     for the halves x_1, x_2 of a head; rounded thrice
//     out    = sum_j softmax_j(scale * q' . k_j) v_j                   in float32; rounded once
//
// Heads of queries that share a head of keys lie side by side.
#pragma once

#include <algorithm>
#include <cmath>

#include "exponential.h"
#include "formats.h"
#include "kept_array.h"
#include "lanes.h"

extern "C" {

struct Attention {
    void* queries;        // (heads, size); rotated in place, then overwritten by the result
    void* key;            // (key_heads, size); rotated in place
    const void* value;    // (key_heads, size)
    const void* cosines;  // (size), of the token's position
    const void* sines;    // (size)
    void* keys;           // (key_heads, capacity, size): those of the tokens before, and room for this one
    void* values;         // (key_heads, capacity, size)
    int64_t heads, key_heads, size, capacity;
    int64_t first, position;  // of the tokens that it attends to, and its own
    float scale;
};
}

namespace {

constexpr int64_t AHEAD_TOKENS = 8;  // keys that are fetched before they are needed, as values are

template <typename Numbers> class Attending {
    using Value = typename Numbers::Value;
    const Attention& attention;

  public:
    explicit Attending(const Attention& attention) : attention(attention) {}

    void run(int threads) const {
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t head = 0; head < attention.key_heads; ++head) append(head);
#pragma omp for schedule(static)
            for (int64_t head = 0; head < attention.heads; ++head) attend(head);
        }
    }

    // Rotates one head's key and keeps key and value.
    void append(int64_t head) const {
        Value* key = static_cast<Value*>(attention.key) + head * attention.size;
        const Value* value = static_cast<const Value*>(attention.value) + head * attention.size;
        rotate(key);
        std::copy(key, key + attention.size, kept(attention.keys, head, attention.position));
        std::copy(value, value + attention.size, kept(attention.values, head, attention.position));
    }

    // Overwrites one head's query with its result, when all keys are kept.
    void attend(int64_t head) const {
        static thread_local KeptArray<float> scratch;
        const int64_t key_head = head / (attention.heads / attention.key_heads);
        const int64_t count = attention.position + 1 - attention.first, whole = (count + LANES - 1) / LANES * LANES;
        float* query = scratch.of(attention.size + LANES + whole);
        float* weights = query + (attention.size + LANES - 1) / LANES * LANES;
        Value* given = static_cast<Value*>(attention.queries) + head * attention.size;
        rotate(given);
        std::transform(given, given + attention.size, query, Numbers::read);
        score(query, kept(attention.keys, key_head, attention.first), count, weights);
        std::fill(weights + count, weights + whole, -INFINITY);
        const float largest = *std::max_element(weights, weights + count);
        for (int64_t j = 0; j < whole; ++j) weights[j] = j < count ? exponential(weights[j] - largest) : 0.0f;
        Lanes total = Lanes::of(0);
        for (int64_t j = 0; j < whole; j += LANES) total = total + Lanes::load(weights + j);
        mix(weights, kept(attention.values, key_head, attention.first), count, sum_lanes(total), given);
    }

  private:
    static float product(Value x, Value y) { return Numbers::as_rounded(Numbers::read(x) * Numbers::read(y)); }

    void rotate(Value* x) const {
        const Value* cosine = static_cast<const Value*>(attention.cosines);
        const Value* sine = static_cast<const Value*>(attention.sines);
        const int64_t half = attention.size / 2;
        for (int64_t i = 0; i < half; ++i) {
            const Value first = x[i], second = x[i + half];
            x[i] = Numbers::round(product(first, cosine[i]) - product(second, sine[i]));
            x[i + half] = Numbers::round(product(second, cosine[i + half]) + product(first, sine[i + half]));
        }
    }

    Value* kept(void* all, int64_t head, int64_t token) const {
        return static_cast<Value*>(all) + (head * attention.capacity + token) * attention.size;
    }

    // Up to 16 values of a key or value.
    static Lanes read(const Value* values, int64_t count) {
        if constexpr (Numbers::NUMBER == FLOAT32) {
            return count >= LANES ? Lanes::load(values) : Lanes::load(values, count);
        } else {
            float read[LANES] = {};
            if (count >= LANES) {
                for (int i = 0; i < LANES; ++i) read[i] = Numbers::read(values[i]);
            } else {
                for (int64_t i = 0; i < count; ++i) read[i] = Numbers::read(values[i]);
            }
            return Lanes::load(read);
        }
    }

    // Fetches a token's key or value of one head.
    void fetch(const Value* begin) const {
        const Value* end = begin + attention.size;
        for (const Value* line = begin; line < end; line += 64 / sizeof(Value)) __builtin_prefetch(line);
    }

    // weights[j] = scale * query . keys[j], four keys at a time.
    void score(const float* query, const Value* keys, int64_t count, float* weights) const {
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) score_some<4>(query, keys + j * attention.size, weights + j);
        for (; j < count; ++j) score_some<1>(query, keys + j * attention.size, weights + j);
    }

    template <int COUNT> void score_some(const float* query, const Value* keys, float* weights) const {
        const int64_t size = attention.size;
        Lanes sums[COUNT];
        std::fill(sums, sums + COUNT, Lanes::of(0));
        for (int k = 0; k < COUNT; ++k) fetch(keys + (k + AHEAD_TOKENS) * size);
        for (int64_t i = 0; i < size; i += LANES) {
            const Lanes asked = size - i >= LANES ? Lanes::load(query + i) : Lanes::load(query + i, size - i);
            for (int k = 0; k < COUNT; ++k) sums[k] = sums[k].add_product(asked, read(keys + k * size + i, size - i));
        }
        sum_all_lanes<COUNT>(sums, weights);
        for (int k = 0; k < COUNT; ++k) weights[k] *= attention.scale;
    }

    // out = sum_j weights[j] * values[j] / total, 64 columns at a time.
    void mix(const float* weights, const Value* values, int64_t count, float total, Value* out) const {
        constexpr int64_t AT_ONCE = 4 * LANES;
        for (int64_t begin = 0; begin < attention.size; begin += AT_ONCE) {
            const int64_t left = attention.size - begin, parts = std::min<int64_t>((left + LANES - 1) / LANES, 4);
            float sums[AT_ONCE];
            if (left >= AT_ONCE) {
                mix_some<4>(weights, values + begin, count, AT_ONCE, sums);
            } else {
                for (int64_t i = 0; i < parts; ++i) {
                    mix_some<1>(weights, values + begin + i * LANES, count, left - i * LANES, sums + i * LANES);
                }
            }
            const int64_t held = std::min(left, AT_ONCE);
            for (int64_t i = 0; i < held; ++i) out[begin + i] = Numbers::round(sums[i] / total);
        }
    }

    template <int PARTS>
    void mix_some(const float* weights, const Value* values, int64_t count, int64_t columns, float* out) const {
        Lanes sums[PARTS];
        std::fill(sums, sums + PARTS, Lanes::of(0));
        for (int64_t j = 0; j < count; ++j, values += attention.size) {
            const Lanes weight = Lanes::of(weights[j]);
            for (int i = 0; i < PARTS; ++i) {
                sums[i] = sums[i].add_product(weight, read(values + i * LANES, columns - i * LANES));
            }
        }
        for (int i = 0; i < PARTS; ++i) sums[i].store(out + i * LANES);
    }
};

}  // namespace
