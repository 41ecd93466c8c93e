// The product of a few tokens on the matrix unit, from one stream of codes.
//
//     y[t, r] = sum_c x[t, c] * w[r, c]  +  sum_j x[t, col_j] * (value_j - w[r, col_j])  +  b[r]        Equation 24
#pragma once

#include "corrections.h"
#include "digits.h"
#include "kept_array.h"

#ifdef HAS_TILES
#include <omp.h>

#include <algorithm>

namespace {

// One thread's panels, multiplied with up to 4 tokens. While a block is multiplied the next one is decoded, behind the
// last one the first of the next panel; and what the sensitive values of the panel before change is added. So reading
// codes never waits.
class FewTokensWorker {
    const Weight& weight;
    const Digits& inputs;
    const void* bias;
    uint16_t* out;
    const int64_t blocks, width;     // width: sums of a row, for each token and digit
    const TileShapes shapes;
    const uint8_t* codes = nullptr;  // of the block that is decoded
    DigitTables tables[2];           // of a panel and of the next one
    int64_t turn = 0;                // which tiles are multiplied; the others are written
    alignas(64) uint8_t tiles[2][4 * TILE_BYTES];
    alignas(64) int32_t sums[WEIGHT_DIGITS][PANEL_ROWS * INPUT_DIGITS * FEW_TOKENS];  // high digits, low digits
    Corrections corrections;         // of the panel before

  public:
    FewTokensWorker(const Weight& weight, const Sparse& sparse, const uint16_t* plain, const Digits& inputs,
                    const void* bias, uint16_t* out)
        : weight(weight), inputs(inputs), bias(bias), out(out), blocks(weight.columns / PANEL_COLUMNS),
          width(INPUT_DIGITS * inputs.tokens), shapes(width), corrections(weight, sparse, plain, inputs.tokens) {}

    void run(int64_t first_panel, int64_t last_panel) {
        codes = codes_in_panel(weight, first_panel * PANEL_ROWS, 0);
        tables_of(first_panel).begin(weight, first_panel * PANEL_ROWS);
        decode_first(tables_of(first_panel));
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
            const bool is_followed = panel + 1 < last_panel;
            if (is_followed) tables_of(panel + 1).begin(weight, (panel + 1) * PANEL_ROWS);
            DigitTables::fetch(weight, (panel + 2) * PANEL_ROWS);
            multiply(panel, is_followed);
            if (panel > first_panel) corrections.write(bias, out);
            collect(panel);
        }
        while (corrections.left()) corrections.add_some();
        corrections.write(bias, out);
    }

  private:
    DigitTables& tables_of(int64_t panel) { return tables[panel % 2]; }

    void decode_first(const DigitTables& table) {
        decode_digits<0>(codes, table, tiles[turn]);
        decode_digits<4>(codes, table, tiles[turn]);
        decode_digits<8>(codes, table, tiles[turn]);
        decode_digits<12>(codes, table, tiles[turn]);
    }

    void multiply(int64_t panel, bool is_followed) {
        const int64_t stride = 4 * width, tile_bytes = 16 * stride, work = corrections.left();
        const int8_t* x = inputs.packed;
        int64_t due = 0;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t block = 0; block < blocks; ++block, turn ^= 1, x += 2 * tile_bytes) {
            const bool is_last = block + 1 == blocks;
            if (!is_last && tables_change_at(weight, block + 1)) tables_of(panel).read(weight, block + 1);
            if (!is_last || is_followed) codes += PANEL_ROWS * PANEL_ROW_BYTES;  // else the last one is decoded twice
            const DigitTables& table = tables_of(is_last && is_followed ? panel + 1 : panel);
            const uint8_t* w = tiles[turn];
            uint8_t* decoded = tiles[turn ^ 1];
            finish_writes();
            _tile_loadd(6, x, stride);
            _tile_loadd(4, w, 64);
            _tile_dpbssd(0, 4, 6);
            decode_digits<0>(codes, table, decoded);
            _tile_loadd(5, (w + TILE_BYTES), 64);
            _tile_dpbssd(1, 5, 6);
            decode_digits<4>(codes, table, decoded);
            _tile_loadd(7, (x + tile_bytes), stride);
            _tile_loadd(4, (w + 2 * TILE_BYTES), 64);
            _tile_dpbssd(0, 4, 7);
            decode_digits<8>(codes, table, decoded);
            _tile_loadd(5, (w + 3 * TILE_BYTES), 64);
            _tile_dpbssd(1, 5, 7);
            decode_digits<12>(codes, table, decoded);
            for (due += work; due >= blocks; due -= blocks) corrections.add_some();
        }
        _tile_stored(0, sums[0], stride);
        _tile_stored(1, sums[1], stride);
    }

    void collect(int64_t panel) {
        const __m512i places = _mm512_mullo_epi32(first_16(), _mm512_set1_epi32(int32_t(width)));
        const __m512 next = _mm512_set1_ps(256), units = _mm512_load_ps(tables_of(panel).units);
        for (int64_t token = 0; token < inputs.tokens; ++token) {
            __m512 total = _mm512_setzero_ps();
            for (int64_t digit = INPUT_DIGITS - 1; digit >= 0; --digit) {
                const int64_t at = token * INPUT_DIGITS + digit;
                const __m512 high = _mm512_cvtepi32_ps(_mm512_i32gather_epi32(places, sums[0] + at, 4));
                const __m512 low = _mm512_cvtepi32_ps(_mm512_i32gather_epi32(places, sums[1] + at, 4));
                total = _mm512_fmadd_ps(total, next, _mm512_fmadd_ps(high, next, low));
            }
            const __m512 unit = _mm512_mul_ps(units, _mm512_set1_ps(inputs.units[token]));
            _mm512_store_ps(corrections.sums[token], _mm512_mul_ps(total, unit));
        }
        corrections.begin(panel * PANEL_ROWS);
    }
};

// Weights in panels of the same inputs (tokens, columns), up to 4 tokens; every panel is the work of one thread.
void multiply_few_tokens(const Product* products, int64_t count, const uint16_t* inputs, int64_t tokens, int threads) {
    const int64_t columns = products[0].weight->columns;
    static thread_local KeptArray<int8_t> kept;
    Digits digits(kept.of(Digits::bytes(columns, tokens)), tokens);
    for (int64_t token = 0; token < tokens; ++token) digits.pack(inputs + token * columns, columns, token);
    int64_t panels = 0;
    for (int64_t i = 0; i < count; ++i) panels += products[i].weight->rows / PANEL_ROWS;
#pragma omp parallel num_threads(threads)
    {
        const int64_t of = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t first = panels * thread / of, last = panels * (thread + 1) / of;  // from each weight's first one on
        for (int64_t i = 0; i < count; ++i) {
            const Product& product = products[i];
            const int64_t held = product.weight->rows / PANEL_ROWS;
            const int64_t begin = std::max<int64_t>(first, 0), end = std::min(last, held);
            first -= held, last -= held;
            if (begin >= end) continue;
            FewTokensWorker worker(*product.weight, *product.sparse, inputs, digits, product.bias,
                                   static_cast<uint16_t*>(product.out));
            worker.run(begin, end);
        }
    }
}

void linear_few_tokens(const Product& product, const uint16_t* inputs, int64_t tokens, int threads) {
    const int64_t rows = product.weight->rows, columns = product.weight->columns;
    for (int64_t first = 0; first < tokens; first += FEW_TOKENS) {
        Product some = product;
        some.out = static_cast<uint16_t*>(product.out) + first * rows;
        multiply_few_tokens(&some, 1, inputs + first * columns, std::min(FEW_TOKENS, tokens - first), threads);
    }
}

}  // namespace
#endif
