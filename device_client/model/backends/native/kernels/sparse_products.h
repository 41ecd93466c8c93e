// The sensitive values' share of a product, beside what else makes the rest of it (Equation 24):
//
//     out[t, r] += sum of value * inputs[t, c] over the sensitive places (r, c) of the row
//
// In float32, in the order of the places: the bits of a token depend on nothing but that token.
#pragma once

#include "weight.h"

namespace {

void add_sparse_products(const Weight& weight, const Sparse& sparse, const float* inputs, float* out, int64_t tokens,
                         int threads) {
    const float* values = static_cast<const float*>(sparse.values);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        const float* columns = inputs + token * weight.columns;
        float* products = out + token * weight.rows;
        for (int64_t row = 0; row < weight.rows; ++row) {
            const int64_t first = (sparse.first_row + row) * weight.columns;
            float sum = 0;
            for (int32_t place = sparse.row_starts[row]; place < sparse.row_starts[row + 1]; ++place) {
                sum += values[place] * columns[sparse.indices[place] - first];
            }
            products[row] += sum;
        }
    }
}

}  // namespace
