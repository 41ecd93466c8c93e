// Codes in panels: what the matrix unit of a CPU (AMX) multiplies.
//
// A panel is 16 rows. Its codes lie block by block, 128 columns at a time, each row's 64 bytes behind those of the row
// before: one stream through memory. Many tokens are multiplied in bfloat16 (at_points.h), a few in bytes (digits.h).
//
// In bfloat16 a register holds a row's 64 bytes as 32 words of 4 codes, and shifting it by 4 bits brings the next code
// of every word to the front. So a block becomes 4 tiles, one for each code of a word:
//
//     weights   tile [row 16][word 32]              column 4 * word + code
//     inputs    tile [pair of words 16][token][2]   the same columns of up to 16 tokens, zeros behind the last one
//
// Sums are in float32. A sum's order depends on the columns alone: not on threads, tokens, points or tiles.
#pragma once

#include "dequantize.h"

#if defined(HAS_AVX512) && defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AMX_BF16__) && \
    defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1

namespace {

constexpr int64_t PANEL_ROWS = 16, PANEL_COLUMNS = 128, PANEL_ROW_BYTES = PANEL_COLUMNS / 2;
constexpr int64_t CODES = 4, WORDS = 32;             // of a row of a tile
constexpr int64_t TILE = PANEL_ROWS * WORDS;         // bfloat16 values of a tile of weights
constexpr int64_t BLOCK_VALUES = CODES * TILE;       // of a block of 16 rows and 128 columns
constexpr int64_t TILE_TOKENS = 16;
// A weight has 4-bit codes, whole blocks, one table for each row and block, and at most 2^16 columns: corrections.h
// divides positions in float32; sums of digits take 2^17. Whether it does is decided in native/amx/__init__.py.

// Where the codes of 128 columns of a row begin.
const uint8_t* codes_in_panel(const Weight& weight, int64_t row, int64_t column) {
    const int64_t blocks = weight.columns / PANEL_COLUMNS, panel = row / PANEL_ROWS;
    const int64_t block = panel * blocks + column / PANEL_COLUMNS;
    return weight.codes + (block * PANEL_ROWS + row % PANEL_ROWS) * PANEL_ROW_BYTES;
}

// Asks the system for the use of the matrix unit, which a process must do once.
bool may_use_tiles() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// Makes the compiler finish what it writes: it does not know that loading a tile reads memory. (Nor do the macros of
// older ones put their arguments in parentheses: sums that are passed to them need their own.)
inline void finish_writes() { asm volatile("" ::: "memory"); }

// The shapes of the eight tile registers of this thread, for as long as it lives.
class TileShapes {
    struct alignas(64) Configuration {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    };

  public:
    // 0 to 3: sums; 4 and 5: weights; 6 and 7: inputs of so many tokens.
    explicit TileShapes(int64_t tokens = TILE_TOKENS) {
        Configuration shapes;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.rows[tile] = 16;
            shapes.row_bytes[tile] = uint16_t(tile == 4 || tile == 5 ? 64 : 4 * tokens);
        }
        finish_writes();
        _tile_loadconfig(&shapes);
    }
    ~TileShapes() { _tile_release(); }
    TileShapes(const TileShapes&) = delete;
};

// The values of one row's codes in a block, in bfloat16; group scales and biases are part of them.
inline __m256i table_in_block(const Weight& weight, int64_t row, int64_t block) {
    __m512 values = table_of(weight, row);
    const int64_t in_row = weight.groups ? block * PANEL_COLUMNS / weight.group_size : 0;
    const int64_t group = row * weight.groups + in_row;
    if (weight.scale) values = _mm512_mul_ps(values, _mm512_set1_ps(half_to_float(weight.scale[group])));
    if (weight.bias) values = _mm512_add_ps(values, _mm512_set1_ps(half_to_float(weight.bias[group])));
    return (__m256i)_mm512_cvtneps_pbh(values);  // which knows no values below 2^-126; float16 has none
}

// Whether the tables of a block differ from those of the block before.
inline bool tables_change_at(const Weight& weight, int64_t block) {
    return weight.groups && block * PANEL_COLUMNS % weight.group_size == 0;
}

// The values of a panel's codes in bfloat16, each table twice in a register: 16 rows.
struct PanelTables {
    __m512i rows[PANEL_ROWS];

    // Reads the tables that hold for a block.
    void read(const Weight& weight, int64_t first_row, int64_t block) {
        for (int64_t r = 0; r < PANEL_ROWS; ++r) {
            rows[r] = _mm512_broadcast_i64x4(table_in_block(weight, first_row + r, block));
        }
    }
};

constexpr int64_t AHEAD = 8 * PANEL_ROWS * PANEL_ROW_BYTES;  // where codes are fetched from memory

// Decodes a block to 4 tiles, and fetches what lies some blocks ahead.
inline void decode_block(const uint8_t* codes, const PanelTables& tables, uint16_t* tiles) {
    for (int64_t r = 0; r < PANEL_ROWS; ++r) {
        const uint8_t* own = codes + r * PANEL_ROW_BYTES;
        uint16_t* to = tiles + r * WORDS;
        _mm_prefetch(reinterpret_cast<const char*>(own + AHEAD), _MM_HINT_T1);
        const __m512i words = _mm512_loadu_si512(own), table = tables.rows[r];
        _mm512_store_si512(to, _mm512_permutexvar_epi16(words, table));
        _mm512_store_si512(to + TILE, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table));
        _mm512_store_si512(to + 2 * TILE, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table));
        _mm512_store_si512(to + 3 * TILE, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table));
    }
}

// Decodes panels to rows (rows, columns), bit-exact with the reference; then writes sensitive values over them.
void decode_panels(const Weight& weight, const Sparse* sparse, uint16_t* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < weight.rows; first += PANEL_ROWS) {
        PanelTables tables;
        for (int64_t column = 0; column < weight.columns; column += PANEL_COLUMNS) {
            const int64_t block = column / PANEL_COLUMNS;
            if (block == 0 || tables_change_at(weight, block)) tables.read(weight, first, block);
            for (int64_t r = 0; r < PANEL_ROWS; ++r) {
                const uint8_t* codes = codes_in_panel(weight, first + r, column);
                uint16_t* to = out + (first + r) * weight.columns + column;
                for (int i = 0; i < 4; ++i) {
                    _mm512_storeu_si512(to + 32 * i, look_up_32(codes + 16 * i, tables.rows[r]));
                }
            }
        }
        for (int64_t r = 0; sparse && r < PANEL_ROWS; ++r) write_row(weight, *sparse, first + r, out);
    }
}

// 16 bfloat16 values as float32.
inline __m512 widened(__m256i values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load_bfloat16(const void* values, int64_t first, __mmask16 lanes) {
    return widened(_mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(values) + first));
}

// 128 columns of one token, [word][code], to [code][word].
inline void sort_by_code(const uint16_t* inputs, __m512i* by_code) {
    alignas(64) static const uint16_t ORDER[32] = {0, 4, 8,  12, 16, 20, 24, 28, 1, 5, 9,  13, 17, 21, 25, 29,
                                                   2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31};
    const __m512i order = _mm512_load_si512(ORDER);
    __m512i words[4];  // of 8 words each, one code after the other
    for (int i = 0; i < 4; ++i) words[i] = _mm512_permutexvar_epi16(order, _mm512_loadu_si512(inputs + 32 * i));
    const __m512i first = _mm512_shuffle_i32x4(words[0], words[1], 0x44);   // codes 0 and 1 of words 0 to 15
    const __m512i second = _mm512_shuffle_i32x4(words[2], words[3], 0x44);  // of words 16 to 31
    const __m512i third = _mm512_shuffle_i32x4(words[0], words[1], 0xee);   // codes 2 and 3
    const __m512i fourth = _mm512_shuffle_i32x4(words[2], words[3], 0xee);
    by_code[0] = _mm512_shuffle_i32x4(first, second, 0x88);
    by_code[1] = _mm512_shuffle_i32x4(first, second, 0xdd);
    by_code[2] = _mm512_shuffle_i32x4(third, fourth, 0x88);
    by_code[3] = _mm512_shuffle_i32x4(third, fourth, 0xdd);
}

// Turns 16 rows of 16 values of 32 bits over.
inline void transpose_16(__m512i* rows) {
    __m512i a[16], b[16];
    for (int i = 0; i < 8; ++i) {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        a[j] = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        a[4 + j] = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        a[8 + j] = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        a[12 + j] = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        rows[j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(a[j], a[8 + j], 0xdd);
        rows[4 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(a[4 + j], a[12 + j], 0xdd);
    }
}

// Packs 128 columns of up to 16 tokens to 4 tiles of inputs.
inline void pack_inputs(const uint16_t* inputs, int64_t columns, int64_t tokens, uint16_t* tiles) {
    __m512i by_code[CODES][TILE_TOKENS];
    for (int64_t token = 0; token < TILE_TOKENS; ++token) {
        __m512i one[CODES] = {};
        if (token < tokens) sort_by_code(inputs + token * columns, one);
        for (int64_t code = 0; code < CODES; ++code) by_code[code][token] = one[code];
    }
    for (int64_t code = 0; code < CODES; ++code) {
        transpose_16(by_code[code]);
        for (int64_t pair = 0; pair < 16; ++pair) {
            _mm512_store_si512(tiles + (code * 16 + pair) * 2 * TILE_TOKENS, by_code[code][pair]);
        }
    }
}

}  // namespace
#endif
