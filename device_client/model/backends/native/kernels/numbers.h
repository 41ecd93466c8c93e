// float32, float16 and bfloat16: conversions that round as torch does, to nearest and ties to even.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include <immintrin.h>
#define HAS_AVX512 1
#endif

namespace {

enum Format : int32_t { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude < 0x400) return bits_to_float(sign | float_to_bits(float(magnitude) * 0x1p-24f));
    return bits_to_float(sign | ((magnitude << 13) + (112u << 23)));
}

uint16_t float_to_half(float value) {
    const uint32_t bits = float_to_bits(value);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000) {                       // below 2^-14: adding 0.5 aligns to multiples of 2^-24
        return sign | uint16_t(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000);
    }
    return sign | uint16_t((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

uint16_t float_to_bfloat16(float value) {
    const uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(0x7fc0);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float load(const void* values, int32_t format, int64_t index) {
    if (format == FLOAT32) return static_cast<const float*>(values)[index];
    const uint16_t bits = static_cast<const uint16_t*>(values)[index];
    return format == FLOAT16 ? half_to_float(bits) : bits_to_float(uint32_t(bits) << 16);
}

void store(void* values, int32_t format, int64_t index, float value) {
    if (format == FLOAT32) {
        static_cast<float*>(values)[index] = value;
    } else {
        static_cast<uint16_t*>(values)[index] = format == FLOAT16 ? float_to_half(value) : float_to_bfloat16(value);
    }
}

template <typename T> T rounded(float value, int32_t format);
template <> float rounded<float>(float value, int32_t) { return value; }
template <> uint16_t rounded<uint16_t>(float value, int32_t format) {
    return format == FLOAT16 ? float_to_half(value) : float_to_bfloat16(value);
}


#ifdef HAS_AVX512
inline void store_16(float* out, __m512 values, int32_t) { _mm512_storeu_ps(out, values); }

inline __m512i first_16() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// 16 values in one of the 16-bit formats.
inline __m256i narrowed(__m512 values, int32_t format) {
    if (format == FLOAT16) return _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT);
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    return _mm256_mask_mov_epi16(words, is_nan, _mm256_set1_epi16(0x7fc0));
}

inline void store_16(uint16_t* out, __m512 values, int32_t format) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), narrowed(values, format));
}

#endif

}  // namespace
