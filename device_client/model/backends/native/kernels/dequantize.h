// Decoding whole rows, and writing sensitive values over them.
//
// Bit-exact with the reference: float32 arithmetic, multiply and add rounded separately (compile with
// -ffp-contract=off), one rounding to the output format at the end. The AVX-512 paths serve 4-bit codes, bytes.h serves
// uniform codes of 8 bits; everything else takes the portable path, which looks up two columns at once in a table made
// per row.
#pragma once

#include "bytes.h"
#include "weight.h"

namespace {

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
int64_t look_up_wide(const uint8_t* row, const uint16_t* table, int64_t columns, uint16_t* out) {
    const __m512i values = twice(table);
    int64_t column = 0;
    for (; column + 32 <= columns; column += 32) {
        _mm512_storeu_si512(out + column, look_up_32(row + (column >> 1), values));
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
    if (is_uniform_bytes(weight)) return decode_byte_row(weight, row, format, out);
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
        out[column] = rounded<T>(grouped(weight, row, column, table[code_at(weight, row, column)]), format);
    }
}

// Writes the sensitive values of one row.
template <typename T> void write_row(const Weight& weight, const Sparse& sparse, int64_t row, T* out) {
    const T* values = static_cast<const T*>(sparse.values);
    for (int32_t j = sparse.row_starts[row]; j < sparse.row_starts[row + 1]; ++j) {
        out[sparse.indices[j] - sparse.first_row * weight.columns] = values[j];
    }
}

// Decodes all rows; where there are sensitive values, each row's are written while it is still in the cache.
template <typename T>
void decode_rows(const Weight& weight, const Sparse* sparse, int32_t format, T* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < weight.rows; ++row) {
        decode_row(weight, row, format, out + row * weight.columns);
        if (sparse) write_row(weight, *sparse, row, out);
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


}  // namespace
