// 16 float32 numbers at once, with the same bits on every CPU that multiplies and adds in one rounding:
//
//     AVX-512                 one register of 16
//     AVX2 with FMA, F16C     two of 8
//     NEON (aarch64)          four of 4
//
// Lanes are added up in halves: lane i and i + 8, then i and i + 4, i + 2, i + 1. Any other CPU takes arrays, which
// round a product before it is added: there the last bits differ.
#pragma once

#include "numbers.h"

#if defined(HAS_AVX512)
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define HAS_AVX2 1
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define HAS_NEON 1
#endif

namespace {

constexpr int LANES = 16;
constexpr int CODE_BYTES = 64;  // of a block of 128 columns: in each lane four bytes, eight codes

// Four lanes' numbers to one, in the order that all CPUs keep to.
inline float sum_of_four(const float* lanes) { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }

#if defined(HAS_AVX512)

struct Lanes {
    __m512 all;

    static Lanes of(float value) { return {_mm512_set1_ps(value)}; }
    static Lanes load(const float* values) { return {_mm512_loadu_ps(values)}; }
    static Lanes load(const float* values, int64_t count) {
        return {_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), values)};
    }
    // Bytes less 128.
    static Lanes centred(const uint8_t* bytes) {
        const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_xor_si128(all, _mm_set1_epi8(char(0x80)))))};
    }
    void store(float* values) const { _mm512_storeu_ps(values, all); }
    Lanes add_product(Lanes x, Lanes y) const { return {_mm512_fmadd_ps(x.all, y.all, all)}; }
    Lanes operator+(Lanes x) const { return {_mm512_add_ps(all, x.all)}; }

    __m128 quarter() const {
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
};

// The float16 values of 16 codes.
struct Table {
    __m512 values;

    explicit Table(const uint16_t* halves)
        : values(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)))) {}
};

#elif defined(HAS_AVX2)

struct Lanes {
    __m256 low, high;

    static Lanes of(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Lanes load(const float* values) { return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)}; }
    static Lanes load(const float* values, int64_t count) {
        float held[LANES] = {};
        std::memcpy(held, values, size_t(count) * sizeof(float));
        return load(held);
    }
    static Lanes centred(const uint8_t* bytes) {
        const __m128i given = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
        const __m128i all = _mm_xor_si128(given, _mm_set1_epi8(char(0x80)));
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(all, 8)))};
    }
    void store(float* values) const { _mm256_storeu_ps(values, low), _mm256_storeu_ps(values + 8, high); }
    Lanes add_product(Lanes x, Lanes y) const {
        return {_mm256_fmadd_ps(x.low, y.low, low), _mm256_fmadd_ps(x.high, y.high, high)};
    }
    Lanes operator+(Lanes x) const { return {_mm256_add_ps(low, x.low), _mm256_add_ps(high, x.high)}; }

    __m128 quarter() const {
        const __m256 half = _mm256_add_ps(low, high);
        return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
};

// The low bytes of 16 float16 values, and the high ones.
struct Table {
    __m256i low, high;

    explicit Table(const uint16_t* halves) {
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
        const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + 8));
        const __m128i byte = _mm_set1_epi16(0xff);
        low = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte)));
        high = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8)));
    }
};

#elif defined(HAS_NEON)

struct Lanes {
    float32x4_t part[4];

    static Lanes of(float value) {
        const float32x4_t four = vdupq_n_f32(value);
        return {{four, four, four, four}};
    }
    static Lanes load(const float* values) {
        return {{vld1q_f32(values), vld1q_f32(values + 4), vld1q_f32(values + 8), vld1q_f32(values + 12)}};
    }
    static Lanes load(const float* values, int64_t count) {
        float held[LANES] = {};
        std::memcpy(held, values, size_t(count) * sizeof(float));
        return load(held);
    }
    static Lanes centred(const uint8_t* bytes) {
        const int8x16_t all = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(bytes), vdupq_n_u8(0x80)));
        const int16x8_t low = vmovl_s8(vget_low_s8(all)), high = vmovl_high_s8(all);
        return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
    }
    void store(float* values) const {
        for (int i = 0; i < 4; ++i) vst1q_f32(values + 4 * i, part[i]);
    }
    Lanes add_product(Lanes x, Lanes y) const {
        Lanes sum;
        for (int i = 0; i < 4; ++i) sum.part[i] = vfmaq_f32(part[i], x.part[i], y.part[i]);
        return sum;
    }
    Lanes operator+(Lanes x) const {
        Lanes sum;
        for (int i = 0; i < 4; ++i) sum.part[i] = vaddq_f32(part[i], x.part[i]);
        return sum;
    }

    float32x4_t quarter() const {
        return vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
    }
};

struct Table {
    uint8x16_t low, high;

    explicit Table(const uint16_t* halves) {
        const uint8x16x2_t bytes = vld2q_u8(reinterpret_cast<const uint8_t*>(halves));
        low = bytes.val[0], high = bytes.val[1];
    }
};

#else

struct Lanes {
    float all[LANES];

    static Lanes of(float value) {
        Lanes lanes;
        for (float& lane : lanes.all) lane = value;
        return lanes;
    }
    static Lanes load(const float* values, int64_t count = LANES) {
        Lanes lanes = {};
        std::memcpy(lanes.all, values, size_t(count) * sizeof(float));
        return lanes;
    }
    static Lanes centred(const uint8_t* bytes) {
        Lanes lanes;
        for (int i = 0; i < LANES; ++i) lanes.all[i] = float(int32_t(bytes[i]) - 128);
        return lanes;
    }
    void store(float* values) const { std::memcpy(values, all, sizeof all); }
    Lanes add_product(Lanes x, Lanes y) const {
        Lanes sum;
        for (int i = 0; i < LANES; ++i) sum.all[i] = all[i] + x.all[i] * y.all[i];
        return sum;
    }
    Lanes operator+(Lanes x) const {
        Lanes sum;
        for (int i = 0; i < LANES; ++i) sum.all[i] = all[i] + x.all[i];
        return sum;
    }
};

struct Table {
    float values[16];

    explicit Table(const uint16_t* halves) {
        for (int code = 0; code < 16; ++code) values[code] = half_to_float(halves[code]);
    }
};

#endif

// Each register's lanes added up.
#if defined(HAS_AVX512) || defined(HAS_AVX2)
inline void sum_lanes(const Lanes (&lanes)[4], float* sums) {
    const __m128 first = lanes[0].quarter(), second = lanes[1].quarter();
    const __m128 third = lanes[2].quarter(), fourth = lanes[3].quarter();
    const __m128 two = _mm_add_ps(_mm_shuffle_ps(first, second, 0x44), _mm_shuffle_ps(first, second, 0xee));
    const __m128 others = _mm_add_ps(_mm_shuffle_ps(third, fourth, 0x44), _mm_shuffle_ps(third, fourth, 0xee));
    _mm_storeu_ps(sums, _mm_add_ps(_mm_shuffle_ps(two, others, 0x88), _mm_shuffle_ps(two, others, 0xdd)));
}

inline float sum_lanes(Lanes lanes) {
    float four[4];
    _mm_storeu_ps(four, lanes.quarter());
    return sum_of_four(four);
}
#else
inline float sum_lanes(Lanes lanes) {
    float four[4];
#if defined(HAS_NEON)
    vst1q_f32(four, lanes.quarter());
#else
    const float* x = lanes.all;
    for (int i = 0; i < 4; ++i) four[i] = (x[i] + x[i + 8]) + (x[i + 4] + x[i + 12]);
#endif
    return sum_of_four(four);
}

inline void sum_lanes(const Lanes (&lanes)[4], float* sums) {
    for (int i = 0; i < 4; ++i) sums[i] = sum_lanes(lanes[i]);
}
#endif

// Each of COUNT registers' lanes added up.
template <int COUNT> inline void sum_all_lanes(const Lanes* lanes, float* sums) {
    int i = 0;
    for (; i + 4 <= COUNT; i += 4) sum_lanes(*reinterpret_cast<const Lanes(*)[4]>(lanes + i), sums + i);
    for (; i < COUNT; ++i) sums[i] = sum_lanes(lanes[i]);
}

}  // namespace
