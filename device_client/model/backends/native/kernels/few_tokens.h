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

constexpr int64_t FEW_TOKENS = 4;

// Packs 128 columns of a few tokens to one tile [pair of words 16][code][token][2].
inline void pack_few_inputs(const uint16_t* inputs, int64_t columns, int64_t tokens, uint16_t* tile) {
    for (int64_t token = 0; token < tokens; ++token) {
        __m512i by_code[CODES];
        sort_by_code(inputs + token * columns, by_code);
        for (int64_t code = 0; code < CODES; ++code) {
            const __m512i next = _mm512_set1_epi32(int32_t(CODES * tokens));
            const __m512i pair = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            int32_t* first = reinterpret_cast<int32_t*>(tile) + code * tokens + token;
            _mm512_i32scatter_epi32(first, _mm512_mullo_epi32(pair, next), by_code[code], 4);
        }
    }
}

// One thread's panels, multiplied with up to 4 tokens. All four tiles of a block's weights are multiplied with the one
// tile of its inputs, and of the sums for all four codes those of the tile's own are taken. The sensitive values of a
// panel are added while the next one is multiplied, so that reading codes never waits for them.
class FewTokensWorker {
    const Weight& weight;
    const Sparse& sparse;
    const uint16_t *inputs, *packed;  // packed: [block][pair of words 16][code][token][2]
    const void* bias;
    uint16_t* out;
    const int64_t tokens, blocks, width;  // width: sums of a row, for each code and token
    const TileShapes shapes;
    PanelTables tables;
    alignas(64) uint16_t tiles[2][BLOCK_VALUES];
    alignas(64) float sums[CODES][PANEL_ROWS * CODES * FEW_TOKENS];

    // Rows [row, end) of the panel before.
    int64_t row = 0, end = 0;
    float products[PANEL_ROWS][FEW_TOKENS];

  public:
    FewTokensWorker(const Weight& weight, const Sparse& sparse, const uint16_t* inputs, const uint16_t* packed,
                    const void* bias, uint16_t* out, int64_t tokens)
        : weight(weight), sparse(sparse), inputs(inputs), packed(packed), bias(bias), out(out), tokens(tokens),
          blocks(weight.columns / PANEL_COLUMNS), width(CODES * tokens), shapes(width) {}

    void run(int64_t first_panel, int64_t last_panel) {
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            multiply(panel * PANEL_ROWS);
            collect(panel * PANEL_ROWS);
        }
        finish_rows(end);
    }

  private:
    void multiply(int64_t first_row) {
        const int64_t stride = 4 * width, tile_values = 2 * 16 * width, rows_left = end - row;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        tables.read(weight, first_row, 0);
        decode_block(codes_in_panel(weight, first_row, 0), tables, tiles[0]);
        for (int64_t block = 0; block < blocks; ++block) {  // decodes the next one while it multiplies
            const uint16_t* w = tiles[block % 2];
            const int64_t next = block + 1 < blocks ? block + 1 : block;
            const uint8_t* codes = codes_in_panel(weight, first_row, next * PANEL_COLUMNS);
            uint16_t* decoded = tiles[(block + 1) % 2];
            if (PanelTables::change_at(weight, next)) tables.read(weight, first_row, next);
            finish_writes();
            _tile_loadd(6, (packed + block * tile_values), stride);
            _tile_loadd(4, w, 64);
            _tile_dpbf16ps(0, 4, 6);
            decode_block<0, 4>(codes, tables, decoded);
            _tile_loadd(5, (w + TILE), 64);
            _tile_dpbf16ps(1, 5, 6);
            decode_block<4, 4>(codes, tables, decoded);
            _tile_loadd(4, (w + 2 * TILE), 64);
            _tile_dpbf16ps(2, 4, 6);
            decode_block<8, 4>(codes, tables, decoded);
            _tile_loadd(5, (w + 3 * TILE), 64);
            _tile_dpbf16ps(3, 5, 6);
            decode_block<12, 4>(codes, tables, decoded);
            finish_rows(end - rows_left * (blocks - 1 - block) / blocks);
        }
        _tile_stored(0, sums[0], stride);
        _tile_stored(1, sums[1], stride);
        _tile_stored(2, sums[2], stride);
        _tile_stored(3, sums[3], stride);
    }

    void collect(int64_t first_row) {
        row = first_row, end = first_row + PANEL_ROWS;
        for (int64_t r = 0; r < PANEL_ROWS; ++r) {
            for (int64_t token = 0; token < tokens; ++token) {
                const int64_t at = r * width + token;
                products[r][token] = (sums[0][at] + sums[1][at + tokens]) +
                                     (sums[2][at + 2 * tokens] + sums[3][at + 3 * tokens]);
            }
        }
    }

    void finish_rows(int64_t last) {
        for (; row < last; ++row) finish_row(products[row % PANEL_ROWS]);
    }

    // Adds what the sensitive values of the row change, and its bias.
    void finish_row(float* sum) {
        const __m512i origin = _mm512_set1_epi32(int32_t((sparse.first_row + row) * weight.columns));
        const int32_t stop = sparse.row_starts[row + 1];
        for (int32_t j = sparse.row_starts[row]; j < stop; j += 16) {
            const __mmask16 held = stop - j < 16 ? __mmask16((1u << (stop - j)) - 1) : __mmask16(0xffff);
            const __m512i columns = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(held, sparse.indices + j), origin);
            const __m512 change =
                _mm512_sub_ps(load_bfloat16(sparse.values, j, held), load_bfloat16(sparse.replaced, j, held));
            for (int64_t token = 0; token < tokens; ++token) {
                const __m512 x = gather_bfloat16(inputs + token * weight.columns, columns, held);
                sum[token] += _mm512_reduce_add_ps(_mm512_mul_ps(x, change));
            }
        }
        for (int64_t token = 0; token < tokens; ++token) {
            const float added = bias ? load(bias, BFLOAT16, row) : 0.0f;
            out[token * weight.rows + row] = float_to_bfloat16(sum[token] + added);
        }
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
