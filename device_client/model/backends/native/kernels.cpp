// Kernels of the native CPU backend, behind a plain C interface.
//
//     w[r, c] = lut[r or 0, code[r, c]] * scale[r, c / g] + bias[r, c / g]        (shared/quantization/codec.py)
//     y[t, r] = sum_c x[t, c] * w[r, c]  +  sum_j x[t, col_j] * (value_j - w[r, col_j])  +  b[r]        Equation 24
//
// dequantize is bit-exact with the reference: float32 arithmetic, multiply and add rounded separately (compile with
// -ffp-contract=off), one rounding to the output format at the end. linear_small accumulates in float32.
//
// Every row is the work of one thread, so results do not depend on the number of threads. The AVX-512 paths serve 4-bit
// codes; everything else takes the portable path, which looks up two columns at once in a table made per row.

#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BW__) && defined(__AVX512F__)
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

}  // namespace

extern "C" {

struct Weight {
    const uint8_t* codes;   // (rows, row_bytes)
    const uint16_t* lut;    // float16 (lut_rows, 2^bits), or null
    const uint16_t* scale;  // float16 (rows, groups), or null
    const uint16_t* bias;   // float16 (rows, groups), or null
    int64_t rows, columns, row_bytes, lut_rows, group_size, groups;
    int32_t bits;
};

struct Sparse {
    const int32_t* row_starts;  // (rows + 1), of the rows that `Weight` describes
    const int32_t* indices;     // flat positions in the whole weight, ascending
    const void* values;         // in the compute format, as many as indices
    int64_t first_row;          // of the rows that `Weight` describes
};
}

namespace {

int code_at(const Weight& weight, const uint8_t* row, int64_t column) {
    const int64_t bit = column * weight.bits;
    uint32_t word = row[bit >> 3];
    if ((bit & 7) + weight.bits > 8) word |= uint32_t(row[(bit >> 3) + 1]) << 8;
    return int(word >> (bit & 7) & ((1u << weight.bits) - 1));
}

// The values of one row's codes, before group scales: 2^bits float32.
void read_table(const Weight& weight, int64_t row, float* table) {
    const int size = 1 << weight.bits;
    const uint16_t* lut = weight.lut ? weight.lut + (weight.lut_rows == 1 ? 0 : row) * size : nullptr;
#ifdef HAS_AVX512
    if (lut && size == 16) {
        _mm512_storeu_ps(table, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lut))));
        return;
    }
#endif
    for (int code = 0; code < size; ++code) table[code] = lut ? half_to_float(lut[code]) : float(code);
}

float grouped(const Weight& weight, int64_t row, int64_t column, float value) {
    if (!weight.groups) return value;
    const int64_t group = row * weight.groups + column / weight.group_size;
    if (weight.scale) value = value * half_to_float(weight.scale[group]);
    if (weight.bias) value = value + half_to_float(weight.bias[group]);
    return value;
}

float weight_at(const Weight& weight, const float* table, int64_t row, int64_t column) {
    return grouped(weight, row, column, table[code_at(weight, weight.codes + row * weight.row_bytes, column)]);
}

template <typename T> void fill_pairs(const T* table, T (*pairs)[2]) {
    for (int byte = 0; byte < 256; ++byte) pairs[byte][0] = table[byte & 15], pairs[byte][1] = table[byte >> 4];
}

// Looks columns [begin, end) up, two at once; begin is even.
template <typename T>
void look_up_pairs(const uint8_t* row, const T (*pairs)[2], int64_t begin, int64_t end, T* out) {
    int64_t column = begin;
    for (; column + 1 < end; column += 2) std::memcpy(out + column, pairs[row[column >> 1]], 2 * sizeof(T));
    if (column < end) out[column] = pairs[row[column >> 1]][0];
}

#ifdef HAS_AVX512
// 32 values of 16 bits from 16 bytes: the table lies in the register twice, so that index bit 4 does not matter.
inline __m512i look_up_32(const uint8_t* bytes, __m512i table) {
    const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_permutexvar_epi16(_mm512_or_si512(byte, _mm512_slli_epi32(byte, 12)), table);
}

// 16 float32 values from 8 bytes; a lane's index is its low 4 bits.
inline __m512 look_up_16(const uint8_t* bytes, __m512 table) {
    const __m512i byte = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    return _mm512_permutexvar_ps(_mm512_or_si512(byte, _mm512_slli_epi64(byte, 28)), table);
}

int64_t look_up_wide(const uint8_t* row, const uint16_t* table, int64_t columns, uint16_t* out) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
    const __m512i twice = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
    int64_t column = 0;
    for (; column + 32 <= columns; column += 32) {
        _mm512_storeu_si512(out + column, look_up_32(row + (column >> 1), twice));
    }
    return column;
}

int64_t look_up_wide(const uint8_t* row, const float* table, int64_t columns, float* out) {
    const __m512 values = _mm512_loadu_ps(table);
    int64_t column = 0;
    for (; column + 16 <= columns; column += 16) {
        _mm512_storeu_ps(out + column, look_up_16(row + (column >> 1), values));
    }
    return column;
}

inline void store_16(float* out, __m512 values, int32_t) { _mm512_storeu_ps(out, values); }

inline void store_16(uint16_t* out, __m512 values, int32_t format) {
    if (format == FLOAT16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
        return;
    }
    const __m512i bits = _mm512_castps_si512(values);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    words = _mm256_mask_mov_epi16(words, is_nan, _mm256_set1_epi16(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), words);
}

// Groups whose size is a multiple of 16: 16 columns never cross a border. Returns the columns done.
template <typename T>
int64_t decode_groups_wide(const Weight& weight, int64_t row, const float* table, int32_t format, T* out) {
    if (weight.group_size % 16) return 0;
    const uint8_t* codes = weight.codes + row * weight.row_bytes;
    const __m512 values = _mm512_loadu_ps(table);
    const int64_t wide = weight.columns & ~int64_t(15);
    for (int64_t group = 0; group * weight.group_size < wide; ++group) {
        const int64_t at = row * weight.groups + group;
        const __m512 scale = _mm512_set1_ps(weight.scale ? half_to_float(weight.scale[at]) : 1.0f);
        const __m512 bias = _mm512_set1_ps(weight.bias ? half_to_float(weight.bias[at]) : 0.0f);
        int64_t column = group * weight.group_size;
        const int64_t end = column + weight.group_size < wide ? column + weight.group_size : wide;
        for (; column < end; column += 16) {
            __m512 decoded = look_up_16(codes + (column >> 1), values);
            if (weight.scale) decoded = _mm512_mul_ps(decoded, scale);
            if (weight.bias) decoded = _mm512_add_ps(decoded, bias);
            store_16(out + column, decoded, format);
        }
    }
    return wide;
}
#endif

// Decodes one row to T: float, or the 16-bit pattern of `format`.
template <typename T> void decode_row(const Weight& weight, int64_t row, int32_t format, T* out) {
    const uint8_t* codes = weight.codes + row * weight.row_bytes;
    float table[256];
    read_table(weight, row, table);
    int64_t column = 0;
    if (weight.bits == 4 && !weight.groups) {
        T values[16];
        for (int code = 0; code < 16; ++code) values[code] = rounded<T>(table[code], format);
#ifdef HAS_AVX512
        column = look_up_wide(codes, values, weight.columns, out);
#else
        T pairs[256][2];
        fill_pairs(values, pairs);
        look_up_pairs(codes, pairs, 0, weight.columns, out);
        column = weight.columns;
#endif
    }
#ifdef HAS_AVX512
    if (weight.bits == 4 && weight.groups) column = decode_groups_wide(weight, row, table, format, out);
#endif
    for (; column < weight.columns; ++column) {
        out[column] = rounded<T>(grouped(weight, row, column, table[code_at(weight, codes, column)]), format);
    }
}

// Decodes all rows; where there are sensitive values, each row's are written while it is still in the cache.
template <typename T>
void decode_rows(const Weight& weight, const Sparse* sparse, int32_t format, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < weight.rows; ++row) {
        decode_row(weight, row, format, out + row * weight.columns);
        if (!sparse) continue;
        const T* values = static_cast<const T*>(sparse->values);
        for (int32_t j = sparse->row_starts[row]; j < sparse->row_starts[row + 1]; ++j) {
            out[sparse->indices[j] - sparse->first_row * weight.columns] = values[j];
        }
    }
}

// Positions lie far apart: each is fetched while those before it are written.
template <typename T> void overwrite(const Weight& weight, const Sparse& sparse, T* out, int threads) {
    constexpr int32_t AHEAD = 32;
    const T* values = static_cast<const T*>(sparse.values);
    const int32_t end = sparse.row_starts[weight.rows];
    T* whole = out - sparse.first_row * weight.columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int32_t j = sparse.row_starts[0]; j < end; ++j) {
        if (j + AHEAD < end) __builtin_prefetch(whole + sparse.indices[j + AHEAD], 1);
        whole[sparse.indices[j]] = values[j];
    }
}

// Inputs as float32 in the order in which codes lie in a vector register: 128 columns are 64 bytes of codes, 16 words of
// 8 codes each, so the input of column 128·b + 8·w + j of a token stands at [b][j][w]. Zeros behind the last column.
struct Shuffled {
    int64_t blocks;
    std::vector<float> values;  // (tokens, blocks, 8, 16)
    std::vector<float> sums;    // (tokens, blocks, 16): each word's inputs added up

    Shuffled(const void* inputs, int32_t format, int64_t tokens, int64_t columns)
        : blocks((columns + 127) / 128), values(size_t(tokens * blocks * 128)), sums(size_t(tokens * blocks * 16)) {
        for (int64_t token = 0; token < tokens; ++token) {
            for (int64_t word = 0; word < blocks * 16; ++word) {
                float* first = values.data() + (token * blocks + word / 16) * 128 + word % 16;
                float* sum = sums.data() + token * blocks * 16 + word;
                const int64_t held = columns - word * 8 < 8 ? columns - word * 8 : 8;
                for (int64_t j = 0; j < held; ++j) {
                    first[j * 16] = load(inputs, format, token * columns + word * 8 + j);
                    *sum += first[j * 16];
                }
            }
        }
    }
    size_t position(int64_t token, int64_t column) const {
        return size_t(((token * blocks + column / 128) * 8 + column % 8) * 16 + column / 8 % 16);
    }
    float at(int64_t token, int64_t column) const { return values[position(token, column)]; }
};

constexpr int ROWS = 4;  // that share one loading of the inputs

#ifdef HAS_AVX512
// Whether a lane of 8 columns never crosses a group's border, and a block of 128 holds whole groups or lies in one.
bool has_wide_dot(const Weight& weight) {
    if (weight.bits != 4) return false;
    const int64_t size = weight.group_size;
    return !weight.groups || size % 128 == 0 || (size % 8 == 0 && 128 % size == 0);
}

// One scale or bias per lane of a block, `fallback` where there is none.
__m512 lanes_of(const uint16_t* grouped, const Weight& weight, int64_t row, int64_t block, float fallback) {
    if (!grouped) return _mm512_set1_ps(fallback);
    const uint16_t* first = grouped + row * weight.groups + block * 128 / weight.group_size;
    if (weight.group_size >= 128) return _mm512_set1_ps(half_to_float(*first));
    const int64_t left = weight.groups - block * 128 / weight.group_size;
    const int64_t held = 128 / weight.group_size < left ? 128 / weight.group_size : left;
    const __m512 values = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(__mmask16((1u << held) - 1), first));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const unsigned shift = unsigned(__builtin_ctzll(uint64_t(weight.group_size)) - 3);
    return _mm512_permutexvar_ps(_mm512_srl_epi32(lane, _mm_cvtsi32_si128(int(shift))), values);
}

// ROWS dot products with TOKENS inputs each. With groups: sum over groups of scale·Σ table[code]·x + bias·Σ x.
template <int TOKENS, bool GROUPED>
void dot_wide(const Weight& weight, int64_t row, const float (*tables)[256], const Shuffled& x, int64_t first,
              float (*sums)[TOKENS]) {
    __m512 table[ROWS], total[ROWS][TOKENS];
    const uint8_t* codes[ROWS];
    const float* inputs[TOKENS];
    for (int r = 0; r < ROWS; ++r) {
        table[r] = _mm512_loadu_ps(tables[r]);
        codes[r] = weight.codes + (row + r) * weight.row_bytes;
        for (int token = 0; token < TOKENS; ++token) total[r][token] = _mm512_setzero_ps();
    }
    for (int token = 0; token < TOKENS; ++token) inputs[token] = x.values.data() + (first + token) * x.blocks * 128;
    for (int64_t block = 0; block < x.blocks; ++block) {
        const int64_t left = weight.row_bytes - block * 64;
        const __mmask64 mask = left >= 64 ? ~__mmask64(0) : (__mmask64(1) << left) - 1;
        __m512i word[ROWS];
        __m512 part[ROWS][TOKENS];
        for (int r = 0; r < ROWS; ++r) {
            _mm_prefetch(reinterpret_cast<const char*>(codes[r] + block * 64 + ROWS * weight.row_bytes), _MM_HINT_T0);
            word[r] = _mm512_maskz_loadu_epi8(mask, codes[r] + block * 64);
            for (int token = 0; token < TOKENS; ++token) {
                part[r][token] = GROUPED ? _mm512_setzero_ps() : total[r][token];
            }
        }
        for (int j = 0; j < 8; ++j) {
            __m512 input[TOKENS];
            for (int token = 0; token < TOKENS; ++token) {
                input[token] = _mm512_loadu_ps(inputs[token] + block * 128 + j * 16);
            }
            for (int r = 0; r < ROWS; ++r) {  // a lane's index is its low 4 bits
                const __m512 value = _mm512_permutexvar_ps(word[r], table[r]);
                word[r] = _mm512_srli_epi32(word[r], 4);
                for (int token = 0; token < TOKENS; ++token) {
                    part[r][token] = _mm512_fmadd_ps(value, input[token], part[r][token]);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r) {
            if (!GROUPED) {
                for (int token = 0; token < TOKENS; ++token) total[r][token] = part[r][token];
                continue;
            }
            const __m512 scale = lanes_of(weight.scale, weight, row + r, block, 1.0f);
            const __m512 bias = lanes_of(weight.bias, weight, row + r, block, 0.0f);
            for (int token = 0; token < TOKENS; ++token) {
                const float* input_sums = x.sums.data() + ((first + token) * x.blocks + block) * 16;
                total[r][token] = _mm512_fmadd_ps(part[r][token], scale, total[r][token]);
                total[r][token] = _mm512_fmadd_ps(_mm512_loadu_ps(input_sums), bias, total[r][token]);
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int token = 0; token < TOKENS; ++token) sums[r][token] = _mm512_reduce_add_ps(total[r][token]);
    }
}
#endif

// One row decoded to float32 and multiplied with TOKENS inputs; any bits, any groups.
template <int TOKENS>
void dot_decoded(const Weight& weight, int64_t row, const Shuffled& x, int64_t first, float* decoded, float* sums) {
    decode_row(weight, row, FLOAT32, decoded);
    for (int token = 0; token < TOKENS; ++token) {
        const float* inputs = x.values.data() + (first + token) * x.blocks * 128;
        float lanes[16] = {};
        for (int64_t block = 0; block < x.blocks; ++block) {  // decoded has zeros up to the block's end
            for (int j = 0; j < 8; ++j) {
                for (int lane = 0; lane < 16; ++lane) {
                    lanes[lane] += decoded[block * 128 + lane * 8 + j] * inputs[block * 128 + j * 16 + lane];
                }
            }
        }
        sums[token] = 0;
        for (float lane : lanes) sums[token] += lane;
    }
}

// The dot products of rows [row, row + count), count ≤ ROWS.
template <int TOKENS>
void dot_rows(const Weight& weight, int64_t row, int64_t count, const float (*tables)[256], const Shuffled& x,
              int64_t first, float* decoded, float (*sums)[TOKENS]) {
#ifdef HAS_AVX512
    if (count == ROWS && has_wide_dot(weight)) {
        if (weight.groups) {
            dot_wide<TOKENS, true>(weight, row, tables, x, first, sums);
        } else {
            dot_wide<TOKENS, false>(weight, row, tables, x, first, sums);
        }
        return;
    }
#endif
    (void)tables;
    for (int64_t r = 0; r < count; ++r) dot_decoded<TOKENS>(weight, row + r, x, first, decoded, sums[r]);
}

// What the sensitive values of one row change: each replaces what its code stands for.
float correction(const Weight& weight, const Sparse& sparse, int32_t format, int64_t row, const float* table,
                 const Shuffled& x, int64_t token) {
    float sum = 0;
    for (int32_t j = sparse.row_starts[row]; j < sparse.row_starts[row + 1]; ++j) {
        const int64_t column = sparse.indices[j] - (sparse.first_row + row) * weight.columns;
        sum += x.at(token, column) * (load(sparse.values, format, j) - weight_at(weight, table, row, column));
    }
    return sum;
}

template <int TOKENS>
void multiply(const Weight& weight, const Sparse& sparse, const Shuffled& x, const void* bias, void* out,
              int32_t format, int64_t first, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> decoded(size_t(x.blocks * 128));
        float tables[ROWS][256], sums[ROWS][TOKENS];
#pragma omp for schedule(static)
        for (int64_t row = 0; row < weight.rows; row += ROWS) {
            const int64_t count = weight.rows - row < ROWS ? weight.rows - row : ROWS;
            for (int64_t r = 0; r < count; ++r) read_table(weight, row + r, tables[r]);
            dot_rows<TOKENS>(weight, row, count, tables, x, first, decoded.data(), sums);
            for (int64_t r = 0; r < count; ++r) {
                for (int token = 0; token < TOKENS; ++token) {
                    float sum = sums[r][token] + correction(weight, sparse, format, row + r, tables[r], x, first + token);
                    if (bias) sum += load(bias, format, row + r);
                    store(out, format, (first + token) * weight.rows + row + r, sum);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// Decodes a weight to (rows, columns) in `format`, with its sensitive values where `sparse` is not null.
void zo_dequantize(const Weight* weight, const Sparse* sparse, void* out, int32_t format, int32_t threads) {
    if (format == FLOAT32) {
        decode_rows(*weight, sparse, format, static_cast<float*>(out), threads);
    } else {
        decode_rows(*weight, sparse, format, static_cast<uint16_t*>(out), threads);
    }
}

// Overwrites the sensitive positions of a decoded weight.
void zo_write_sparse(const Weight* weight, const Sparse* sparse, void* out, int32_t format, int32_t threads) {
    if (format == FLOAT32) {
        overwrite(*weight, *sparse, static_cast<float*>(out), threads);
    } else {
        overwrite(*weight, *sparse, static_cast<uint16_t*>(out), threads);
    }
}

// inputs (tokens, columns), bias (rows) or null, out (tokens, rows), all in `format`.
void zo_linear_small(const Weight* weight, const Sparse* sparse, const void* inputs, const void* bias, void* out,
                     int64_t tokens, int32_t format, int32_t threads) {
    const Shuffled x(inputs, format, tokens, weight->columns);
    int64_t first = 0;
    for (; first + 4 <= tokens; first += 4) multiply<4>(*weight, *sparse, x, bias, out, format, first, threads);
    for (; first + 2 <= tokens; first += 2) multiply<2>(*weight, *sparse, x, bias, out, format, first, threads);
    for (; first < tokens; ++first) multiply<1>(*weight, *sparse, x, bias, out, format, first, threads);
}
}
