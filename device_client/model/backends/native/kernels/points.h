// The sensitive values of several points, each rounded once to the compute format:
//
//     out = theta + s * z        where s * z is rounded to float32 first, as any machine does it
#pragma once

#include <algorithm>

#include "formats.h"

extern "C" {

struct PerturbedPoint {
    const float* theta;
    const float* z;
    float s;
    void* out;
};
}

namespace {

constexpr int64_t POINT_VALUES = 4096;  // written for every point at a time: theta and z stay in the cache

template <typename Numbers>
void write_point(Numbers numbers, const PerturbedPoint& point, int64_t first, int64_t last) {
    auto* out = static_cast<typename Numbers::Value*>(point.out);
    int64_t i = first;
#ifdef HAS_AVX512
    const __m512 s = _mm512_set1_ps(point.s);
    for (; i + 16 <= last; i += 16) {
        const __m512 step = _mm512_mul_ps(_mm512_loadu_ps(point.z + i), s);
        store_16(out + i, _mm512_add_ps(_mm512_loadu_ps(point.theta + i), step), Numbers::NUMBER);
    }
#endif
    for (; i < last; ++i) {
        const float step = point.z[i] * point.s;
        out[i] = numbers.round(point.theta[i] + step);
    }
}

template <typename Numbers>
void write_points(Numbers numbers, const PerturbedPoint* points, int64_t count, int64_t values, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < values; first += POINT_VALUES) {
        const int64_t last = std::min(first + POINT_VALUES, values);
        for (int64_t point = 0; point < count; ++point) write_point(numbers, points[point], first, last);
    }
}

}  // namespace
