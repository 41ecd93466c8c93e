// Root mean square norm:  y = w * x / sqrt(mean(x^2) + epsilon), rounded before and after w, as transformers does.
#pragma once

#include <cmath>

#include "formats.h"

namespace {

template <typename Numbers>
void norm(Numbers numbers, const void* inputs, const void* weights, void* outputs, int64_t rows, int64_t columns,
          float epsilon) {
    using Value = typename Numbers::Value;
    const Value* weight = static_cast<const Value*>(weights);
    for (int64_t row = 0; row < rows; ++row) {
        const Value* x = static_cast<const Value*>(inputs) + row * columns;
        Value* y = static_cast<Value*>(outputs) + row * columns;
        const auto input = [&](int64_t i) { return numbers.read(x[i]); };
        const float factor = 1 / std::sqrt(dot_of(columns, input, input) / float(columns) + epsilon);
        for (int64_t i = 0; i < columns; ++i) {
            y[i] = numbers.round(numbers.read(weight[i]) * numbers.as_rounded(numbers.read(x[i]) * factor));
        }
    }
}

}  // namespace
