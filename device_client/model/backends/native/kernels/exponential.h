// e^x in float32, with the same bits on every machine: within 2 units in the last place of the exact value.
//
//     e^x = 2^n * p(r)        n = round(x / ln 2),  r = x - n ln 2,  p a polynomial around 0 (Cephes, expf)
//
// Products and sums are rounded separately (compile with -ffp-contract=off). Without a branch: loops become vectors.
#pragma once

#include "numbers.h"

namespace {

inline float exponential(float x) {
    constexpr float LEAST = -87.0f, MOST = 88.0f, TO_WHOLE = 12582912.0f;  // 1.5 * 2^23: adding it rounds
    x = x < LEAST ? LEAST : x;                                             // what is not a number stays so
    x = x > MOST ? MOST : x;
    const float shifted = x * 1.44269504088896341f + TO_WHOLE, n = shifted - TO_WHOLE;
    const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * bits_to_float((float_to_bits(shifted) << 23) + (127u << 23));
}

}  // namespace
