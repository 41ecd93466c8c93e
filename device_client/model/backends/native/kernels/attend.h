// Attention of one token to the tokens before it and itself.
//
//     q', k' = rotate(q), rotate(k):  x * cos + (-x_2, x_1) * sin     for the halves x_1, x_2 of a head; rounded thrice
//     out    = sum_j softmax_j(scale * q' . k_j) v_j                   in float32; rounded once
//
// Heads of queries that share a head of keys lie side by side.
#pragma once

#include <algorithm>
#include <cmath>

#include "formats.h"
#include "kept_array.h"

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
        const int64_t sharing = attention.heads / attention.key_heads;
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t head = 0; head < attention.key_heads; ++head) append(head);
#pragma omp for schedule(static)
            for (int64_t head = 0; head < attention.heads; ++head) attend(head / sharing, head);
        }
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

    // Fetches a token's key or value of one head.
    void fetch(const Value* begin) const {
        const Value* end = begin + attention.size;
        for (const Value* line = begin; line < end; line += 64 / sizeof(Value)) __builtin_prefetch(line);
    }

    void append(int64_t head) const {
        Value* key = static_cast<Value*>(attention.key) + head * attention.size;
        const Value* value = static_cast<const Value*>(attention.value) + head * attention.size;
        rotate(key);
        std::copy(key, key + attention.size, kept(attention.keys, head, attention.position));
        std::copy(value, value + attention.size, kept(attention.values, head, attention.position));
    }

    void attend(int64_t key_head, int64_t head) const {
        static thread_local KeptArray<float> scratch;
        const int64_t count = attention.position + 1 - attention.first;
        float* query = scratch.of(2 * attention.size + count);
        float *sums = query + attention.size, *weights = sums + attention.size;
        Value* given = static_cast<Value*>(attention.queries) + head * attention.size;
        rotate(given);
        std::transform(given, given + attention.size, query, Numbers::read);
        const Value* key = kept(attention.keys, key_head, attention.first);
        const Value* value = kept(attention.values, key_head, attention.first);
        for (int64_t j = 0; j < count; ++j, key += attention.size) {
            fetch(key + AHEAD_TOKENS * attention.size);
            fetch(value + j * attention.size);
            const auto x = [&](int64_t i) { return query[i]; };
            const auto y = [&](int64_t i) { return Numbers::read(key[i]); };
            weights[j] = dot_of(attention.size, x, y) * attention.scale;
        }
        const float largest = *std::max_element(weights, weights + count);
        float total = 0;
        std::fill(sums, sums + attention.size, 0.0f);
        for (int64_t j = 0; j < count; ++j, value += attention.size) {
            const float weight = std::exp(weights[j] - largest);
            total += weight;
            for (int64_t i = 0; i < attention.size; ++i) sums[i] += weight * Numbers::read(value[i]);
        }
        for (int64_t i = 0; i < attention.size; ++i) given[i] = Numbers::round(sums[i] / total);
    }
};

}  // namespace
