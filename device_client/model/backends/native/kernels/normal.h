// Standard normal values from the perturbation stream: the C++ twin of shared/perturbation.py, bit for bit.
//
//     words = Philox-4x64(key = seed, counter = (draws, query, step));  z = quantile(half of a word)
//
// Scalar multiplications make the words while vector units turn the words before into values. One thread: it runs beside
// a step's products. Products and sums are rounded separately (compile with -ffp-contract=off).
#pragma once

#include "numbers.h"

namespace {

constexpr int64_t OCTAVES = 32, DEGREE = 5;
constexpr int64_t WORDS_AT_ONCE = 8, VALUES_AT_ONCE = 16;

// Philox-4x64 of ten rounds (Salmon et al. 2011), counted as NumPy counts: the first block has counter 1.
class Philox {
    uint64_t seed, query, step, drawn = 0;

    static uint64_t high_product(uint64_t a, uint64_t b) {
#ifdef __SIZEOF_INT128__
        return uint64_t((unsigned __int128)a * b >> 64);
#else
        const uint64_t low_a = uint32_t(a), high_a = a >> 32, low_b = uint32_t(b), high_b = b >> 32;
        const uint64_t middle = high_a * low_b + (low_a * low_b >> 32), other = low_a * high_b + uint32_t(middle);
        return high_a * high_b + (middle >> 32) + (other >> 32);
#endif
    }

  public:
    Philox(uint64_t seed, uint64_t step, uint64_t query) : seed(seed), query(query), step(step) {}

    void next_words(uint64_t* words) {
        constexpr uint64_t FIRST = 0xD2E7470EE14C6C93, SECOND = 0xCA5A826395121157;
        constexpr uint64_t FIRST_KEY = 0x9E3779B97F4A7C15, SECOND_KEY = 0xBB67AE8584CAA73B;
        for (uint64_t* block = words; block < words + WORDS_AT_ONCE; block += 4) {
            uint64_t a = ++drawn, b = 0, c = query, d = step, key = seed, other_key = 0;
            for (int round = 0; round < 10; ++round, key += FIRST_KEY, other_key += SECOND_KEY) {
                const uint64_t first_low = FIRST * a, first_high = high_product(FIRST, a);
                const uint64_t second_low = SECOND * c, second_high = high_product(SECOND, c);
                a = second_high ^ b ^ key, b = second_low;
                c = first_high ^ d ^ other_key, d = first_low;
            }
            block[0] = a, block[1] = b, block[2] = c, block[3] = d;
        }
    }
};

// The polynomials of shared/normal_quantile.py, one row for each octave.
class Quantile {
#ifdef HAS_AVX512
    __m512 low[DEGREE + 1], high[DEGREE + 1];  // of octaves 0 to 15, and 16 to 31, by power

  public:
    explicit Quantile(const float* coefficients) {
        const __m512i rows = _mm512_mullo_epi32(first_16(), _mm512_set1_epi32(DEGREE + 1));
        for (int64_t power = 0; power <= DEGREE; ++power) {
            low[power] = _mm512_i32gather_ps(rows, coefficients + power, 4);
            high[power] = _mm512_i32gather_ps(rows, coefficients + 16 * (DEGREE + 1) + power, 4);
        }
    }

    // 8 words to 16 values.
    void values(const uint64_t* words, float* out) const {
        const __m512i bits = _mm512_load_si512(words), one = _mm512_set1_epi32(1);
        const __m512i odd = _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)), one);
        const __m512i tail = _mm512_castps_si512(_mm512_cvtepi32_ps(odd));
        // The lowest five bits of an exponent with bias 127 are the octave's, less one.
        const __m512i octave = _mm512_add_epi32(_mm512_srli_epi32(tail, 23), one);
        const __m512i mantissa = _mm512_and_si512(tail, _mm512_set1_epi32(0x7fffff));
        const __m512 place = _mm512_sub_ps(_mm512_castsi512_ps(_mm512_or_si512(mantissa, _mm512_set1_epi32(127 << 23))),
                                           _mm512_set1_ps(1.5f));
        __m512 sum = _mm512_permutex2var_ps(low[DEGREE], octave, high[DEGREE]);
        for (int64_t power = DEGREE - 1; power >= 0; --power) {
            sum = _mm512_add_ps(_mm512_mul_ps(sum, place), _mm512_permutex2var_ps(low[power], octave, high[power]));
        }
        const __m512i sign = _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MIN));
        _mm512_storeu_ps(out, _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(sum), sign)));
    }
#else
    const float* coefficients;

    float value(uint32_t bits) const {
        const uint32_t tail = float_to_bits(float(int32_t((bits & 0x7fffffff) | 1)));
        const float place = bits_to_float((tail & 0x7fffff) | 127u << 23) - 1.5f;
        const float* row = coefficients + ((tail >> 23) - 127) * (DEGREE + 1);
        float sum = row[DEGREE];
        for (int64_t power = DEGREE - 1; power >= 0; --power) sum = sum * place + row[power];
        return bits_to_float(float_to_bits(sum) ^ (bits & 0x80000000));
    }

  public:
    explicit Quantile(const float* coefficients) : coefficients(coefficients) {}

    void values(const uint64_t* words, float* out) const {
        for (int64_t i = 0; i < WORDS_AT_ONCE; ++i) {
            out[2 * i] = value(uint32_t(words[i]));
            out[2 * i + 1] = value(uint32_t(words[i] >> 32));
        }
    }
#endif
};

void draw_normal(Philox stream, const Quantile& quantile, float* out, int64_t count) {
    alignas(64) uint64_t words[2][WORDS_AT_ONCE];
    alignas(64) float last[VALUES_AT_ONCE];
    stream.next_words(words[0]);
    int64_t drawn = 0;
    for (int64_t turn = 0; drawn + VALUES_AT_ONCE <= count; ++turn, drawn += VALUES_AT_ONCE) {
        stream.next_words(words[(turn + 1) % 2]);
        quantile.values(words[turn % 2], out + drawn);
    }
    quantile.values(words[drawn / VALUES_AT_ONCE % 2], last);
    for (int64_t i = drawn; i < count; ++i) out[i] = last[i - drawn];
}

}  // namespace
