// The product of a few tokens on the matrix unit, from one stream of codes.
//
//     y[t, r] = sum_c x[t, c] * w[r, c]  +  sum_j x[t, col_j] * (value_j - w[r, col_j])  +  b[r]        Equation 24
#pragma once

#include "kept_array.h"
#include "panels.h"

#ifdef HAS_TILES
#include <omp.h>

namespace {

// The bfloat16 values at `at` of a base, as float32; reads the aligned pair that each belongs to.
inline __m512 gather_bfloat16(const void* base, __m512i at, __mmask16 lanes) {
    const __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), lanes, _mm512_srli_epi32(at, 1), base, 4);
    const __m512i odd = _mm512_slli_epi32(_mm512_and_si512(at, _mm512_set1_epi32(1)), 4);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_srlv_epi32(pairs, odd), 16));
}

// at / columns, of flat positions within a panel: below 2^21. With half a column added a quotient is at least 2^-18 away
// from a whole number; what float32 rounds off is less.
inline __m512i quotient(__m512i at, int64_t columns) {
    const __m512 middle = _mm512_add_ps(_mm512_cvtepi32_ps(at), _mm512_set1_ps(0.5f));
    return _mm512_cvttps_epi32(_mm512_div_ps(middle, _mm512_set1_ps(float(columns))));
}

constexpr int64_t FEW_TOKENS = 4;

// Packs 128 columns of a few tokens to one tile [pair of words 16][code][token][2].
inline void pack_few_inputs(const uint16_t* inputs, int64_t columns, int64_t tokens, uint16_t* tile) {
    for (int64_t token = 0; token < tokens; ++token) {
        __m512i by_code[CODES];
        sort_by_code(inputs + token * columns, by_code);
        for (int64_t code = 0; code < CODES; ++code) {
            const __m512i next = _mm512_set1_epi32(int32_t(CODES * tokens));
            int32_t* first = reinterpret_cast<int32_t*>(tile) + code * tokens + token;
            _mm512_i32scatter_epi32(first, _mm512_mullo_epi32(first_16(), next), by_code[code], 4);
        }
    }
}

// What the sensitive values of a panel change, added to its sums 16 values at a time, whatever their rows.
class Corrections {
    const Weight& weight;
    const Sparse& sparse;
    const uint16_t* inputs;
    const int64_t tokens;
    int64_t first_row = 0;
    int32_t next = 0, stop = 0;

  public:
    alignas(64) float sums[FEW_TOKENS][PANEL_ROWS];

    Corrections(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, int64_t tokens)
        : weight(weight), sparse(sparse), inputs(inputs), tokens(tokens) {}

    void begin(int64_t row) {
        first_row = row, next = sparse.row_starts[row], stop = sparse.row_starts[row + PANEL_ROWS];
    }

    // How often there is something to add.
    int64_t left() const { return (stop - next + 15) / 16; }

    void add_some() {
        const int32_t count = stop - next < 16 ? stop - next : 16;
        const __mmask16 held = __mmask16((1u << count) - 1);
        const __m512i origin = _mm512_set1_epi32(int32_t((sparse.first_row + first_row) * weight.columns));
        const __m512i at = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(held, sparse.indices + next), origin);
        const __m512i row = quotient(at, weight.columns);
        const __m512i column = _mm512_sub_epi32(at, _mm512_mullo_epi32(row, _mm512_set1_epi32(int32_t(weight.columns))));
        const __m512 change =
            _mm512_sub_ps(load_bfloat16(sparse.values, next, held), load_bfloat16(sparse.replaced, next, held));
        alignas(64) int32_t rows[16];
        alignas(64) float added[16];
        _mm512_store_si512(rows, row);
        for (int64_t token = 0; token < tokens; ++token) {
            const __m512 x = gather_bfloat16(inputs + token * weight.columns, column, held);
            _mm512_store_ps(added, _mm512_mul_ps(x, change));
            for (int32_t i = 0; i < count; ++i) sums[token][rows[i]] += added[i];
        }
        next += count;
    }

    void write(const void* bias, uint16_t* out) const {
        for (int64_t token = 0; token < tokens; ++token) {
            __m512 sum = _mm512_load_ps(sums[token]);
            if (bias) sum = _mm512_add_ps(sum, load_bfloat16(bias, first_row, 0xffff));
            store_16(out + token * weight.rows + first_row, sum, BFLOAT16);
        }
    }
};

// One thread's panels, multiplied with up to 4 tokens. All four tiles of a block's weights are multiplied with the one
// tile of its inputs, and of the sums for all four codes those of the tile's own are taken. While a block is multiplied
// the next one is decoded, behind the last one the first of the next panel; and what the sensitive values of the panel
// before change is added. So reading codes never waits.
class FewTokensWorker {
    const Weight& weight;
    const uint16_t* packed;  // [block][pair of words 16][code][token][2]
    const void* bias;
    uint16_t* out;
    const int64_t tokens, blocks, width;  // width: sums of a row, for each code and token
    const TileShapes shapes;
    const uint8_t* codes = nullptr;  // of the block that is decoded
    PanelTables tables[2];           // of a panel and of the next one
    int64_t turn = 0;                // which tiles are multiplied; the others are written
    alignas(64) uint16_t tiles[2][BLOCK_VALUES];
    alignas(64) float sums[CODES][PANEL_ROWS * CODES * FEW_TOKENS];
    Corrections corrections;  // of the panel before

  public:
    FewTokensWorker(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, const uint16_t* packed,
                    const void* bias, uint16_t* out, int64_t tokens)
        : weight(weight), packed(packed), bias(bias), out(out), tokens(tokens),
          blocks(weight.columns / PANEL_COLUMNS), width(CODES * tokens), shapes(width),
          corrections(weight, sparse, inputs, tokens) {}

    void run(int64_t first_panel, int64_t last_panel) {
        if (first_panel == last_panel) return;
        codes = codes_in_panel(weight, first_panel * PANEL_ROWS, 0);
        tables_of(first_panel).read(weight, first_panel * PANEL_ROWS, 0);
        decode_block(codes, tables_of(first_panel), tiles[turn]);
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const bool is_followed = panel + 1 < last_panel;
            if (is_followed) tables_of(panel + 1).read(weight, (panel + 1) * PANEL_ROWS, 0);
            PanelTables::fetch(weight, (panel + 2) * PANEL_ROWS);
            multiply(panel, is_followed);
            if (panel > first_panel) corrections.write(bias, out);
            collect(panel * PANEL_ROWS);
        }
        while (corrections.left()) corrections.add_some();
        corrections.write(bias, out);
    }

  private:
    PanelTables& tables_of(int64_t panel) { return tables[panel % 2]; }

    void multiply(int64_t panel, bool is_followed) {
        const int64_t stride = 4 * width, tile_values = 2 * 16 * width, work = corrections.left();
        int64_t due = 0;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t block = 0; block < blocks; ++block, turn ^= 1) {
            const bool is_last = block + 1 == blocks;
            if (!is_last && PanelTables::change_at(weight, block + 1)) {
                tables_of(panel).read(weight, panel * PANEL_ROWS, block + 1);
            }
            if (!is_last || is_followed) codes += PANEL_ROWS * PANEL_ROW_BYTES;  // else the last one is decoded twice
            const PanelTables& table = tables_of(is_last && is_followed ? panel + 1 : panel);
            const uint16_t* w = tiles[turn];
            uint16_t* decoded = tiles[turn ^ 1];
            finish_writes();
            _tile_loadd(6, (packed + block * tile_values), stride);
            _tile_loadd(4, w, 64);
            _tile_dpbf16ps(0, 4, 6);
            decode_block<0, 4>(codes, table, decoded);
            _tile_loadd(5, (w + TILE), 64);
            _tile_dpbf16ps(1, 5, 6);
            decode_block<4, 4>(codes, table, decoded);
            _tile_loadd(4, (w + 2 * TILE), 64);
            _tile_dpbf16ps(2, 4, 6);
            decode_block<8, 4>(codes, table, decoded);
            _tile_loadd(5, (w + 3 * TILE), 64);
            _tile_dpbf16ps(3, 5, 6);
            decode_block<12, 4>(codes, table, decoded);
            for (due += work; due >= blocks; due -= blocks) corrections.add_some();
        }
        _tile_stored(0, sums[0], stride);
        _tile_stored(1, sums[1], stride);
        _tile_stored(2, sums[2], stride);
        _tile_stored(3, sums[3], stride);
    }

    void collect(int64_t first_row) {
        const __m512i places = _mm512_mullo_epi32(first_16(), _mm512_set1_epi32(int32_t(width)));
        for (int64_t token = 0; token < tokens; ++token) {
            __m512 sum[CODES];
            for (int64_t code = 0; code < CODES; ++code) {
                sum[code] = _mm512_i32gather_ps(places, sums[code] + code * tokens + token, 4);
            }
            const __m512 total = _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3]));
            _mm512_store_ps(corrections.sums[token], total);
        }
        corrections.begin(first_row);
    }
};

// inputs (tokens, columns) of up to 4 tokens; every panel is the work of one thread.
void multiply_few_tokens(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, const void* bias,
                         uint16_t* out, int64_t tokens, int threads) {
    const int64_t blocks = weight.columns / PANEL_COLUMNS, panels = weight.rows / PANEL_ROWS;
    const int64_t tile_values = 2 * 16 * CODES * tokens;
    static thread_local KeptArray<uint16_t> kept;
    uint16_t* packed = kept.of(blocks * tile_values);
    for (int64_t block = 0; block < blocks; ++block) {
        pack_few_inputs(inputs + block * PANEL_COLUMNS, weight.columns, tokens, packed + block * tile_values);
    }
#pragma omp parallel num_threads(threads)
    {
        const int64_t of = omp_get_num_threads(), thread = omp_get_thread_num();
        FewTokensWorker worker(weight, sparse, inputs, packed, bias, out, tokens);
        worker.run(panels * thread / of, panels * (thread + 1) / of);
    }
}

void linear_few_tokens(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, const void* bias,
                       uint16_t* out, int64_t tokens, int threads) {
    for (int64_t first = 0; first < tokens; first += FEW_TOKENS) {
        const int64_t held = tokens - first < FEW_TOKENS ? tokens - first : FEW_TOKENS;
        const uint16_t* from = inputs + first * weight.columns;
        multiply_few_tokens(weight, sparse, from, bias, out + first * weight.rows, held, threads);
    }
}

}  // namespace
#endif
