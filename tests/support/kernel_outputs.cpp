// Runs every kernel on inputs that are the same on every machine, and prints a digest of each output's bits.
//
// Linked with the kernels of several CPUs, the lines must agree: kernels promise the same bits wherever products and
// sums are fused.

#include <cstdio>
#include <string>
#include <vector>

#include "attend.h"
#include "linear_small.h"
#include "points.h"
#include "step.h"

extern "C" {
void zo_draw_normal(uint64_t, uint64_t, uint64_t, const float*, float*, int64_t);
void zo_write_points(const PerturbedPoint*, int64_t, int64_t, int32_t, int32_t);
void zo_dequantize(const Weight*, const Sparse*, void*, int32_t, int32_t);
void zo_write_sparse(const Weight*, const Sparse*, void*, int32_t, int32_t);
void zo_linear_small(const Weight*, const Sparse*, const void*, const void*, void*, int64_t, int32_t, int32_t);
void zo_add_sparse_products(const Weight*, const Sparse*, const float*, float*, int64_t, int32_t);
void zo_linear_side_by_side(const Product*, int64_t, const void*, int32_t, int32_t);
void zo_norm(const void*, const void*, void*, int64_t, int64_t, float, int32_t);
void zo_attend(const Attention*, int32_t, int32_t);
void zo_step(const Step*, int32_t);
}

namespace {

// Whole numbers from a linear congruence, and values that every machine makes of them exactly.
struct Numbers64 {
    uint64_t state = 1;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return uint32_t(state >> 33);
    }
    float value() { return float(int32_t(next()) - (1 << 30)) * 0x1p-29f; }
    uint16_t half() { return float_to_half(value()); }
    std::vector<float> values(int64_t count) {
        std::vector<float> made(static_cast<size_t>(count));
        for (float& each : made) each = value();
        return made;
    }
};

void print(const std::string& name, const void* bytes, size_t count) {
    uint64_t digest = 14695981039346656037u;
    for (size_t i = 0; i < count; ++i) digest = (digest ^ static_cast<const uint8_t*>(bytes)[i]) * 1099511628211u;
    std::printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(digest));
}

const char* const FORMAT_NAMES[3] = {"float32", "float16", "bfloat16"};
size_t value_bytes(int32_t format) { return format == FLOAT32 ? 4 : 2; }

// Values in a format, as bytes.
std::vector<uint8_t> in_format(const std::vector<float>& values, int32_t format) {
    std::vector<uint8_t> bytes(values.size() * value_bytes(format));
    for (size_t i = 0; i < values.size(); ++i) store(bytes.data(), format, int64_t(i), values[i]);
    return bytes;
}

enum Form { PER_ROW, SHARED_SCALED, UNIFORM };
const char* const FORM_NAMES[3] = {"per_row", "shared", "uniform"};

std::string named(int32_t bits, Form form, int32_t format) {
    return std::to_string(bits) + " bits " + FORM_NAMES[form] + " " + FORMAT_NAMES[format];
}

// A weight with sensitive values, and all that its structs point to.
struct Case {
    Weight weight{};
    Sparse sparse{};
    std::vector<uint8_t> codes, values, replaced;
    std::vector<uint16_t> lut, scale, bias;
    std::vector<int32_t> starts, indices;

    Case(Numbers64& numbers, int64_t rows, int64_t columns, int32_t bits, Form form, int64_t group_size,
         int32_t format) {
        weight.rows = rows, weight.columns = columns, weight.bits = bits;
        weight.row_bytes = (columns * bits + 7) / 8;
        codes.resize(size_t(rows * weight.row_bytes));
        for (uint8_t& code : codes) code = uint8_t(numbers.next());
        if (form != UNIFORM) {
            weight.lut_rows = form == PER_ROW ? rows : 1;
            lut.resize(size_t(weight.lut_rows << bits));
            for (uint16_t& each : lut) each = numbers.half();
            lut[1] = 0x0001, lut[2] = 0x83ff;  // below float16's normal range
        }
        if (form != PER_ROW) {
            weight.group_size = group_size, weight.groups = (columns + group_size - 1) / group_size;
            scale.resize(size_t(rows * weight.groups)), bias.resize(size_t(form == UNIFORM ? rows * weight.groups : 0));
            for (uint16_t& each : scale) each = numbers.half();
            for (uint16_t& each : bias) each = numbers.half();
        }
        starts.push_back(0);
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t column = numbers.next() % 40; column < columns; column += 1 + numbers.next() % 60) {
                indices.push_back(int32_t(row * columns + column));
            }
            starts.push_back(int32_t(indices.size()));
        }
        values = in_format(numbers.values(int64_t(indices.size())), format);
        replaced = in_format(numbers.values(int64_t(indices.size())), format);
        weight.codes = codes.data();
        weight.lut = lut.empty() ? nullptr : lut.data();
        weight.scale = scale.empty() ? nullptr : scale.data();
        weight.bias = bias.empty() ? nullptr : bias.data();
        sparse = {starts.data(), indices.data(), values.data(), replaced.data(), 0};
    }
    Case(const Case&) = delete;

    Product product(const void* of_rows, void* out) const { return {&weight, &sparse, of_rows, out}; }
};

void run_decoding(Numbers64& numbers) {
    for (int32_t format : {FLOAT32, FLOAT16, BFLOAT16}) {
        for (int32_t bits : {2, 3, 4, 8}) {
            for (Form form : {PER_ROW, SHARED_SCALED, UNIFORM}) {
                const Case made(numbers, 3, 200, bits, form, 64, format);
                const std::string name = " " + named(bits, form, format);
                std::vector<uint8_t> out(600 * value_bytes(format));
                zo_dequantize(&made.weight, &made.sparse, out.data(), format, 1);
                print("zo_dequantize" + name, out.data(), out.size());
                zo_dequantize(&made.weight, nullptr, out.data(), format, 1);
                zo_write_sparse(&made.weight, &made.sparse, out.data(), format, 1);
                print("zo_write_sparse" + name, out.data(), out.size());
            }
        }
    }
}

void run_products(Numbers64& numbers) {
    for (int32_t format : {FLOAT32, FLOAT16, BFLOAT16}) {
        for (int64_t columns : {40, 300, 576}) {
            for (int32_t bits : {3, 4, 8}) {
                for (Form form : {PER_ROW, SHARED_SCALED, UNIFORM}) {
                    const int64_t group_size = columns == 300 ? 16 : 128, rows = 13, tokens = 7;
                    const Case made(numbers, rows, columns, bits, form, group_size, format);
                    const auto inputs = in_format(numbers.values(tokens * columns), format);
                    const auto bias = in_format(numbers.values(rows), format);
                    std::vector<uint8_t> out(size_t(tokens * rows) * value_bytes(format));
                    zo_linear_small(&made.weight, &made.sparse, inputs.data(), bias.data(), out.data(), tokens, format,
                                    1);
                    const std::string name = std::to_string(columns) + " columns " + named(bits, form, format);
                    print("zo_linear_small " + name, out.data(), out.size());
                }
            }
        }
        const Case made(numbers, 13, 300, 4, PER_ROW, 0, format);
        std::vector<uint8_t> out(13 * value_bytes(format));
        const Product product = made.product(nullptr, out.data());
        zo_linear_side_by_side(&product, 1, in_format(numbers.values(300), format).data(), format, 1);
        print(std::string("zo_linear_side_by_side ") + FORMAT_NAMES[format], out.data(), out.size());
    }
    const Case made(numbers, 13, 300, 4, PER_ROW, 0, FLOAT32);
    std::vector<float> sums = numbers.values(2 * 13);
    zo_add_sparse_products(&made.weight, &made.sparse, numbers.values(600).data(), sums.data(), 2, 1);
    print("zo_add_sparse_products", sums.data(), sums.size() * sizeof(float));
}

void run_values(Numbers64& numbers) {
    const std::vector<float> coefficients = numbers.values(32 * 6);
    std::vector<float> drawn(1003);
    zo_draw_normal(5, 6, 7, coefficients.data(), drawn.data(), int64_t(drawn.size()));
    print("zo_draw_normal", drawn.data(), drawn.size() * sizeof(float));
    for (int32_t format : {FLOAT32, FLOAT16, BFLOAT16}) {
        const std::vector<float> theta = numbers.values(77), z = numbers.values(77);
        std::vector<uint8_t> out(77 * value_bytes(format));
        const PerturbedPoint point{theta.data(), z.data(), 0.001f, out.data()};
        zo_write_points(&point, 1, 77, format, 1);
        print(std::string("zo_write_points ") + FORMAT_NAMES[format], out.data(), out.size());
    }
}

void run_token(Numbers64& numbers) {
    for (int32_t format : {FLOAT32, FLOAT16, BFLOAT16}) {
        for (int64_t columns : {7, 96}) {
            const auto inputs = in_format(numbers.values(2 * columns), format);
            const auto weight = in_format(numbers.values(columns), format);
            std::vector<uint8_t> out(inputs.size());
            zo_norm(inputs.data(), weight.data(), out.data(), 2, columns, 1e-5f, format);
            print("zo_norm " + std::to_string(columns) + " " + FORMAT_NAMES[format], out.data(), out.size());
        }
        for (int64_t size : {8, 64, 80}) {
            const int64_t heads = 6, key_heads = 2, capacity = 40;
            const auto some = [&](int64_t count) { return in_format(numbers.values(count * size), format); };
            auto queries = some(heads), key = some(key_heads), value = some(key_heads);
            auto keys = some(key_heads * capacity), values = some(key_heads * capacity);
            const auto cosines = some(1), sines = some(1);
            const Attention attention{queries.data(), key.data(),    value.data(), cosines.data(), sines.data(),
                                      keys.data(),    values.data(), heads,        key_heads,      size,
                                      capacity,       2,             33,           0.25f};
            zo_attend(&attention, format, 1);
            print("zo_attend " + std::to_string(size) + " " + FORMAT_NAMES[format], queries.data(), queries.size());
        }
    }
}

void run_step(Numbers64& numbers) {
    constexpr int64_t HIDDEN = 96, SIZE = 16, HEADS = 6, KEY_HEADS = 2, MIDDLE = 160, CAPACITY = 20, WORDS = 70;
    const std::vector<float> norm = numbers.values(HIDDEN), head_norm = numbers.values(SIZE);
    const Case query(numbers, HEADS * SIZE, HIDDEN, 4, PER_ROW, 0, FLOAT32);
    const Case key(numbers, KEY_HEADS * SIZE, HIDDEN, 4, PER_ROW, 0, FLOAT32);
    const Case output(numbers, HIDDEN, HEADS * SIZE, 4, UNIFORM, 32, FLOAT32);
    const Case gate(numbers, MIDDLE, HIDDEN, 4, SHARED_SCALED, 32, FLOAT32);
    const Case down(numbers, HIDDEN, MIDDLE, 4, PER_ROW, 0, FLOAT32);
    const Case words(numbers, WORDS, HIDDEN, 8, UNIFORM, HIDDEN, FLOAT32);
    auto keys = numbers.values(KEY_HEADS * CAPACITY * SIZE), values = numbers.values(KEY_HEADS * CAPACITY * SIZE);
    const StepNorm plain{norm.data(), 1e-5f}, of_heads{head_norm.data(), 1e-5f};
    const auto of = [](const Case& made) { return made.product(nullptr, nullptr); };
    const StepBlock block{plain,      of_heads, of_heads, plain,    of(query),   of(key),      of(key),
                          of(output), of(gate), of(gate), of(down), keys.data(), values.data()};
    const StepBlock blocks[2] = {block, block};
    std::vector<float> hidden = numbers.values(HIDDEN), logits(WORDS);
    const auto cosines = numbers.values(SIZE), sines = numbers.values(SIZE);
    const Product head = words.product(nullptr, logits.data());
    const Step step{blocks, 2,         plain, &head,    hidden.data(), cosines.data(), sines.data(),
                    HEADS,  KEY_HEADS, SIZE,  CAPACITY, 1,             13,             0.25f};
    zo_step(&step, 2);
    print("zo_step logits", logits.data(), logits.size() * sizeof(float));
    print("zo_step hidden", hidden.data(), hidden.size() * sizeof(float));
}

}  // namespace

int main() {
    Numbers64 numbers;
    run_values(numbers);
    run_decoding(numbers);
    run_products(numbers);
    run_token(numbers);
    run_step(numbers);
}
