// The products of several points on the matrix unit: W exists only in tiles that stay in the cache.
//
//     w[r, col_j] = value_j of the point;  y[t, r] = sum_c x[t, c] * w[r, c]  +  b[r]                   Equation 26
#pragma once

#include "kept_array.h"
#include "panels.h"

#ifdef HAS_TILES
#include <omp.h>

#include <algorithm>
#include <vector>

extern "C" {

// Where sensitive values go in tiles, sorted by the slice of columns that they belong to, then by panel.
struct Placement {
    const int32_t* starts;  // (slices * panels + 1): where each slice's and panel's values begin
    const int32_t* order;   // which value
    const int32_t* places;  // in the slice's tiles of all panels
};
}

namespace {

constexpr int64_t GROUP_PANELS = 16;   // whose sums are made at once: 256 rows
constexpr int64_t SLICE_BLOCKS = 2;    // of them, decoded at once: 256 columns, 128 KiB; also in amx/__init__.py
constexpr int64_t PASS_TILES = 32;     // of 16 tokens: their sums are 512 KiB; amx/__init__.py too, as tokens
constexpr int64_t SLICE_VALUES = SLICE_BLOCKS * BLOCK_VALUES;  // of a panel

// Adds PANELS × TOKEN_TILES tiles of sums, over `steps` tiles of each panel's weights and each token tile's inputs.
template <int PANELS, int TOKEN_TILES>
void add_products(const uint16_t* weights, int64_t next_panel, const uint16_t* inputs, int64_t next_tokens, float* sums,
                  int64_t next_sums, int64_t steps, bool is_first) {
    constexpr int64_t SUMS = 256;
    finish_writes();
    if (is_first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        if (PANELS == 2) _tile_loadd(1, (sums + SUMS), 64);
        if (TOKEN_TILES == 2) _tile_loadd(2, (sums + next_sums), 64);
        if (PANELS == 2 && TOKEN_TILES == 2) _tile_loadd(3, (sums + next_sums + SUMS), 64);
    }
    for (int64_t step = 0; step < steps; ++step, weights += TILE, inputs += TILE) {
        _tile_loadd(4, weights, 64);
        _tile_loadd(6, inputs, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (TOKEN_TILES == 2) {
            _tile_loadd(7, (inputs + next_tokens), 64);
            _tile_dpbf16ps(2, 4, 7);
        }
        if (PANELS == 2) {
            _tile_loadd(5, (weights + next_panel), 64);
            _tile_dpbf16ps(1, 5, 6);
            if (TOKEN_TILES == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    if (PANELS == 2) _tile_stored(1, (sums + SUMS), 64);
    if (TOKEN_TILES == 2) _tile_stored(2, (sums + next_sums), 64);
    if (PANELS == 2 && TOKEN_TILES == 2) _tile_stored(3, (sums + next_sums + SUMS), 64);
}

// Puts every sensitive value into the list of its slice and panel, and finds its place in that slice's tiles.
void sort_values(const Weight& weight, const Sparse& sparse, int32_t* starts, int32_t* order, int32_t* places) {
    constexpr int64_t WIDTH = SLICE_BLOCKS * PANEL_COLUMNS;
    const int64_t panels = weight.rows / PANEL_ROWS, lists = (weight.columns + WIDTH - 1) / WIDTH * panels;
    const auto each = [&](auto take) {
        for (int64_t row = 0; row < weight.rows; ++row) {
            const int64_t origin = (sparse.first_row + row) * weight.columns;
            for (int32_t j = sparse.row_starts[row]; j < sparse.row_starts[row + 1]; ++j) {
                const int64_t column = sparse.indices[j] - origin;
                take(row, column, column / WIDTH * panels + row / PANEL_ROWS, j);
            }
        }
    };
    std::fill(starts, starts + lists + 1, 0);
    each([&](int64_t, int64_t, int64_t list, int32_t) { ++starts[list + 1]; });
    for (int64_t list = 0; list < lists; ++list) starts[list + 1] += starts[list];
    each([&](int64_t row, int64_t column, int64_t list, int32_t j) {
        const int32_t at = starts[list]++;
        const int64_t in_block = column % PANEL_COLUMNS, block = column % WIDTH / PANEL_COLUMNS;
        order[at] = j;
        places[at] = int32_t(row / PANEL_ROWS * SLICE_VALUES + (block * CODES + in_block % CODES) * TILE +
                             row % PANEL_ROWS * WORDS + in_block / CODES);
    });
    std::copy_backward(starts, starts + lists, starts + lists + 1);  // each list has moved to where the next begins
    starts[0] = 0;
}

// What is multiplied at several points: up to PASS_TILES tiles of tokens in all.
struct Pass {
    const uint16_t* inputs;        // of the first point's first token
    int64_t points, tokens;        // tokens of each point
    int64_t next_point;            // tokens from a point's first one to that of the next
    const void* const* values;     // of each point
    uint16_t* out;                 // likewise

    int64_t tiles_of_a_point() const { return (tokens + TILE_TOKENS - 1) / TILE_TOKENS; }
    int64_t tiles() const { return points * tiles_of_a_point(); }
};

// The group's sums to bfloat16 outputs.
void write_outputs(const Weight& weight, const Pass& pass, const float* sums, int64_t panels, int64_t first_row,
                   const void* bias) {
    for (int64_t tile = 0; tile < pass.tiles(); ++tile) {
        const int64_t point = tile / pass.tiles_of_a_point(), first = tile % pass.tiles_of_a_point() * TILE_TOKENS;
        const int64_t held = pass.tokens - first < TILE_TOKENS ? pass.tokens - first : TILE_TOKENS;
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t row = first_row + panel * PANEL_ROWS;
            uint16_t* to = pass.out + (point * pass.next_point + first) * weight.rows + row;
            __m512i by_token[16];
            const float* from = sums + (tile * GROUP_PANELS + panel) * 256;
            for (int i = 0; i < 16; ++i) by_token[i] = _mm512_load_si512(from + 16 * i);
            transpose_16(by_token);
            __m512 added = _mm512_setzero_ps();
            if (bias) added = load_bfloat16(bias, row, 0xffff);
            for (int64_t token = 0; token < held; ++token) {
                const __m512 sum = _mm512_castsi512_ps(by_token[token]);
                store_16(to + token * weight.rows, bias ? _mm512_add_ps(sum, added) : sum, BFLOAT16);
            }
        }
    }
}

// One thread's panels [begin, end) of a pass.
class PanelWorker {
    const Weight& weight;
    const Placement& placement;
    const void* bias;
    uint16_t* tiles;  // (GROUP_PANELS, SLICE_BLOCKS, CODES, 16, 32)
    float* sums;      // (PASS_TILES, GROUP_PANELS, 16 rows, 16 tokens)
    std::vector<PanelTables> tables{GROUP_PANELS};
    TileShapes shapes;

  public:
    PanelWorker(const Weight& weight, const Placement& placement, const void* bias)
        : weight(weight), placement(placement), bias(bias) {
        static thread_local KeptArray<uint16_t> kept_tiles;
        static thread_local KeptArray<float> kept_sums;
        tiles = kept_tiles.of(GROUP_PANELS * SLICE_VALUES);
        sums = kept_sums.of(PASS_TILES * GROUP_PANELS * 256);
    }

    void run(const Pass& pass, const uint16_t* packed, int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; panel += GROUP_PANELS) {
            const int64_t count = end - panel < GROUP_PANELS ? end - panel : GROUP_PANELS;
            group(pass, packed, panel, count);
            write_outputs(weight, pass, sums, count, panel * PANEL_ROWS, bias);
        }
    }

  private:
    void group(const Pass& pass, const uint16_t* packed, int64_t first_panel, int64_t panels) {
        const int64_t blocks = weight.columns / PANEL_COLUMNS;
        for (int64_t block = 0, slice = 0; block < blocks; block += SLICE_BLOCKS, ++slice) {
            const int64_t count = blocks - block < SLICE_BLOCKS ? blocks - block : SLICE_BLOCKS;
            decode(first_panel * PANEL_ROWS, panels, block, count);
            for (int64_t point = 0; point < pass.points; ++point) {
                write_values(slice, static_cast<const uint16_t*>(pass.values[point]), first_panel, panels);
                multiply(pass, packed + block * BLOCK_VALUES, point, panels, count * CODES, block == 0);
            }
        }
    }

    void decode(int64_t first_row, int64_t panels, int64_t first_block, int64_t count) {
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t row = first_row + panel * PANEL_ROWS;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t block = first_block + i;
                if (block == 0 || tables_change_at(weight, block)) tables[size_t(panel)].read(weight, row, block);
                decode_block(codes_in_panel(weight, row, block * PANEL_COLUMNS), tables[size_t(panel)],
                             tiles + panel * SLICE_VALUES + i * BLOCK_VALUES);
            }
        }
    }

    void write_values(int64_t slice, const uint16_t* of_point, int64_t first_panel, int64_t panels) {
        const int32_t* list = placement.starts + slice * (weight.rows / PANEL_ROWS) + first_panel;
        const int64_t origin = first_panel * SLICE_VALUES;
        for (int32_t i = list[0]; i < list[panels]; ++i) {
            tiles[placement.places[i] - origin] = of_point[placement.order[i]];
        }
    }

    void multiply(const Pass& pass, const uint16_t* packed, int64_t point, int64_t panels, int64_t steps,
                  bool is_first) {
        constexpr int64_t NEXT_SUMS = GROUP_PANELS * 256;
        const int64_t next_tokens = weight.columns * TILE_TOKENS, end = (point + 1) * pass.tiles_of_a_point();
        for (int64_t tile = point * pass.tiles_of_a_point(); tile < end; tile += 2) {
            for (int64_t panel = 0; panel < panels; panel += 2) {
                const uint16_t* w = tiles + panel * SLICE_VALUES;
                const uint16_t* x = packed + tile * next_tokens;
                float* to = sums + tile * NEXT_SUMS + panel * 256;
                const bool two_panels = panel + 1 < panels, two_tiles = tile + 1 < end;
                const auto add = two_panels ? (two_tiles ? add_products<2, 2> : add_products<2, 1>)
                                            : (two_tiles ? add_products<1, 2> : add_products<1, 1>);
                add(w, SLICE_VALUES, x, next_tokens, to, NEXT_SUMS, steps, is_first);
            }
        }
    }
};

// inputs (points, tokens, columns), values of each point, out (points, tokens, rows); `packed` holds
// PASS_TILES · 16 tokens.
void linear_at_points(const Weight& weight, const Placement& placement, const uint16_t* inputs,
                      const void* const* values, const void* bias, uint16_t* out, int64_t points, int64_t tokens,
                      uint16_t* packed, int threads) {
    constexpr int64_t MOST_TOKENS = PASS_TILES * TILE_TOKENS;
    if (tokens == 0) return;
    const int64_t tiles_of_a_point = (tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    const int64_t points_at_once = tiles_of_a_point < PASS_TILES ? PASS_TILES / tiles_of_a_point : 1;
    std::vector<Pass> passes;
    for (int64_t point = 0; point < points; point += points_at_once) {
        for (int64_t token = 0; token < tokens; token += MOST_TOKENS) {
            passes.push_back({inputs + (point * tokens + token) * weight.columns,
                              points - point < points_at_once ? points - point : points_at_once,
                              tokens - token < MOST_TOKENS ? tokens - token : MOST_TOKENS, tokens, values + point,
                              out + (point * tokens + token) * weight.rows});
        }
    }
    const int64_t blocks = weight.columns / PANEL_COLUMNS, panels = weight.rows / PANEL_ROWS;
#pragma omp parallel num_threads(threads)
    {
        PanelWorker worker(weight, placement, bias);
        const int64_t of = omp_get_num_threads(), thread = omp_get_thread_num();
        for (const Pass& pass : passes) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < pass.tiles() * blocks; ++i) {
                const int64_t tile = i / blocks, block = i % blocks;
                const int64_t point = tile / pass.tiles_of_a_point();
                const int64_t first = tile % pass.tiles_of_a_point() * TILE_TOKENS;
                const int64_t held = pass.tokens - first < TILE_TOKENS ? pass.tokens - first : TILE_TOKENS;
                const uint16_t* from = pass.inputs + (point * pass.next_point + first) * weight.columns;
                pack_inputs(from + block * PANEL_COLUMNS, weight.columns, held, packed + i * BLOCK_VALUES);
            }
            worker.run(pass, packed, panels * thread / of, panels * (thread + 1) / of);
#pragma omp barrier
        }
    }
}

}  // namespace
#endif
