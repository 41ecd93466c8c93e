// Kernels of the native CPU backend, behind a plain C interface.
//
// Every row, or panel of rows, is the work of one thread, so results do not depend on the number of threads.

#include "at_points.h"
#include "attend.h"
#include "dequantize.h"
#include "few_tokens.h"
#include "linear_small.h"
#include "norm.h"
#include "normal.h"
#include "points.h"
#include "sparse_products.h"
#include "step.h"

extern "C" {

// The Gaussian perturbation at (seed, step, query): out (count), float32; coefficients (32, 6) of normal_quantile.py.
void zo_draw_normal(uint64_t seed, uint64_t step, uint64_t query, const float* coefficients, float* out,
                    int64_t count) {
    draw_normal(Philox(seed, step, query), Quantile(coefficients), out, count);
}

// The sensitive values of `count` points, `values` each, rounded to `format`.
void zo_write_points(const PerturbedPoint* points, int64_t count, int64_t values, int32_t format, int32_t threads) {
    with_format(format, [&](auto as) { write_points(as, points, count, values, threads); });
}

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
    linear_small({weight, sparse, bias, out}, inputs, tokens, format, threads);
}

// Adds the sensitive values' share to products: inputs (tokens, columns) and out (tokens, rows), in float32.
void zo_add_sparse_products(const Weight* weight, const Sparse* sparse, const float* inputs, float* out, int64_t tokens,
                            int32_t threads) {
    add_sparse_products(*weight, *sparse, inputs, out, tokens, threads);
}

// The products of one token with several weights of as many columns, all in `format`.
void zo_linear_side_by_side(const Product* products, int64_t count, const void* inputs, int32_t format,
                            int32_t threads) {
    for (const Product* it = products; it < products + count; ++it) {
        linear_small(*it, inputs, 1, format, threads);
    }
}

// inputs (rows, columns), weight (columns), out (rows, columns), all in `format`.
void zo_norm(const void* inputs, const void* weight, void* out, int64_t rows, int64_t columns, float epsilon,
             int32_t format) {
    with_format(format, [&](auto as) { norm(as, inputs, weight, out, rows, columns, epsilon); });
}

// The attention of one token, all in `format`.
void zo_attend(const Attention* attention, int32_t format, int32_t threads) {
    with_format(format, [&](auto as) { Attending<decltype(as)>(*attention).run(threads); });
}

// A token's whole way through a decoder, in float32.
void zo_step(const Step* step, int32_t threads) { take_step(*step, threads); }

// Whether products can be made on the CPU's matrix unit, by the kernels below: the system may refuse it to a process.
int32_t zo_may_use_tiles() {
#ifdef HAS_TILES
    static const bool may_use = may_use_tiles();
    return may_use;
#else
    return 0;
#endif
}

#ifdef HAS_TILES
// Those of weights whose codes lie in panels, in bfloat16, take what their namesakes above take.
void zo_panels_dequantize(const Weight* weight, const Sparse* sparse, void* out, int32_t, int32_t threads) {
    decode_panels(*weight, sparse, static_cast<uint16_t*>(out), threads);
}

void zo_panels_linear_small(const Weight* weight, const Sparse* sparse, const void* inputs, const void* bias, void* out,
                            int64_t tokens, int32_t, int32_t threads) {
    const Product product{weight, sparse, bias, out};
    linear_few_tokens(product, static_cast<const uint16_t*>(inputs), tokens, threads);
}

void zo_panels_linear_side_by_side(const Product* products, int64_t count, const void* inputs, int32_t,
                                   int32_t threads) {
    multiply_few_tokens(products, count, static_cast<const uint16_t*>(inputs), 1, threads);
}

// Finds the placement of a weight's sensitive values.
void zo_panels_sort_values(const Weight* weight, const Sparse* sparse, int32_t* starts, int32_t* order,
                           int32_t* places) {
    sort_values(*weight, *sparse, starts, order, places);
}

// Inputs (points, tokens, columns), the sensitive values of each point, bias (rows) or null, out (points, tokens, rows);
// `packed` has room for 512 tokens of inputs.
void zo_panels_linear_at_points(const Weight* weight, const Placement* placement, const void* inputs,
                                const void* const* values, const void* bias, void* out, int64_t points, int64_t tokens,
                                void* packed, int32_t threads) {
    linear_at_points(*weight, *placement, static_cast<const uint16_t*>(inputs), values, bias,
                     static_cast<uint16_t*>(out), points, tokens, static_cast<uint16_t*>(packed), threads);
}
#endif
}
