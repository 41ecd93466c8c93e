// The compute formats as types, known where loops are compiled.
#pragma once

#include "numbers.h"

namespace {

template <typename T, int32_t FORMAT> struct Numbers {
    using Value = T;
    static constexpr int32_t NUMBER = FORMAT;
    static float read(T value) {
        if constexpr (FORMAT == FLOAT32) return value;
        if constexpr (FORMAT == FLOAT16) return half_to_float(value);
        if constexpr (FORMAT == BFLOAT16) return bits_to_float(uint32_t(value) << 16);
    }
    static T round(float value) { return rounded<T>(value, FORMAT); }
    static float as_rounded(float value) { return read(round(value)); }
};

// Does work(Numbers) with the format of that number.
template <typename Work> void with_format(int32_t format, Work work) {
    if (format == FLOAT32) return work(Numbers<float, FLOAT32>());
    if (format == FLOAT16) return work(Numbers<uint16_t, FLOAT16>());
    work(Numbers<uint16_t, BFLOAT16>());
}

// sum_i x(i) * y(i) of float32 numbers, in an order that depends on the count alone.
template <typename X, typename Y> float dot_of(int64_t count, X x, Y y) {
    constexpr int64_t WIDTH = 32;
    float sums[WIDTH] = {}, sum = 0;
    int64_t i = 0;
    for (; i + WIDTH <= count; i += WIDTH) {
        for (int64_t lane = 0; lane < WIDTH; ++lane) sums[lane] += x(i + lane) * y(i + lane);
    }
    for (; i < count; ++i) sum += x(i) * y(i);
    for (int64_t half = WIDTH / 2; half; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    }
    return sum + sums[0];
}

}  // namespace
