// A token's whole way through a decoder of llama's kind, in float32, with one team of threads:
//
//     h += o(attend(q, k, v of norm(h)));  h += down(silu(gate) * up of norm(h))      for every block
//     logits = head(norm(h))
//
// A piece of a product is some rows. What is cheap (norms, laying inputs out) each thread does for itself rather than
// wait for another one.
#pragma once

#include "attend.h"
#include "linear_small.h"
#include "norm.h"
#include "team.h"

extern "C" {

struct StepNorm {
    const float* weight;  // null where there is none
    float epsilon;
};

struct StepBlock {
    StepNorm attention_norm, query_norm, key_norm, mlp_norm;
    Product query, key, value, output, gate, up, down;  // `out` of each is not used
    float* keys;                                        // (key_heads, capacity, size)
    float* values;
};

struct Step {
    const StepBlock* blocks;
    int64_t count;
    StepNorm norm;         // behind the last block
    const Product* head;   // or null; writes to its `out`
    float* hidden;         // the token's embedding; overwritten by what is behind the last norm
    const float* cosines;  // (size), of the token's position
    const float* sines;
    int64_t heads, key_heads, size, capacity;
    int64_t first, position;  // of the tokens that it attends to, and its own
    float scale;
};
}

namespace {

using Float32 = Numbers<float, FLOAT32>;

// The parts of a block, in their order; behind the last block stands the head.
enum StepPart : int64_t { ATTENTION_INPUTS, APPEND, ATTEND, ATTENTION_OUTPUT, GATED, DOWN, PARTS };

// What all threads of a step see.
struct StepBuffers {
    float *queries, *key, *value, *activated;

    StepBuffers(KeptArray<float>& room, const Step& step) {
        const int64_t of_queries = step.heads * step.size, of_keys = step.key_heads * step.size;
        int64_t widest = 0;
        for (int64_t i = 0; i < step.count; ++i) widest = std::max(widest, step.blocks[i].gate.weight->rows);
        queries = room.of(of_queries + 2 * of_keys + widest);
        key = queries + of_queries, value = key + of_keys, activated = value + of_keys;
    }
};

int64_t hidden_size(const Step& step) { return step.blocks[0].query.weight->columns; }

void norm_hidden(const Step& step, const StepNorm& by, float* out) {
    norm(Float32(), step.hidden, by.weight, out, 1, hidden_size(step), by.epsilon);
}

int64_t pieces_of(const Product& product) { return (product.weight->rows + SOME_ROWS - 1) / SOME_ROWS; }

// One thread's worker; see team.h. A part's inputs are laid out with its first piece.
class StepWorker {
    const Step& step;
    const StepBuffers& shared;
    KeptArray<float>&normed_room, &laid_room;  // its own
    int64_t laid_part = -1;
    const float* plain = nullptr;  // the inputs of that part
    Shuffled shuffled{};
    PlainInputs bytes_inputs{};

  public:
    StepWorker(const Step& step, const StepBuffers& shared, KeptArray<float>& normed_room, KeptArray<float>& laid_room)
        : step(step), shared(shared), normed_room(normed_room), laid_room(laid_room) {}

    static int64_t parts(const Step& step) { return step.count * PARTS + (step.head ? 1 : 0); }

    int64_t pieces(int64_t part) const {
        if (part == step.count * PARTS) return pieces_of(*step.head);
        const StepBlock& block = step.blocks[part / PARTS];
        switch (part % PARTS) {
            case ATTENTION_INPUTS: return pieces_of(block.query) + pieces_of(block.key) + pieces_of(block.value);
            case APPEND: return step.key_heads;
            case ATTEND: return step.heads;
            case ATTENTION_OUTPUT: return pieces_of(block.output);
            case GATED: return pieces_of(block.gate);
            default: return pieces_of(block.down);
        }
    }

    void work(int64_t part, int64_t piece) {
        if (part == step.count * PARTS) return write_logits(part, piece);
        const StepBlock& block = step.blocks[part / PARTS];
        switch (part % PARTS) {
            case ATTENTION_INPUTS: return multiply_attention_inputs(block, part, piece);
            case APPEND:
                norm_head(block.key_norm, shared.key + piece * step.size);
                return Attending<Float32>(attention(block)).append(piece);
            case ATTEND:
                norm_head(block.query_norm, shared.queries + piece * step.size);
                return Attending<Float32>(attention(block)).attend(piece);
            case ATTENTION_OUTPUT: return add_to_hidden(block.output, shared.queries, part, piece);
            case GATED: return multiply_gated(block, part, piece);
            default: return add_to_hidden(block.down, shared.activated, part, piece);
        }
    }

  private:
    Attention attention(const StepBlock& block) const {
        return {shared.queries, shared.key,     shared.value, step.cosines,  step.sines, block.keys,    block.values,
                step.heads,     step.key_heads, step.size,    step.capacity, step.first, step.position, step.scale};
    }

    void norm_head(const StepNorm& by, float* head) const {
        if (by.weight) norm(Float32(), head, by.weight, head, 1, step.size, by.epsilon);
    }

    const float* normed(const StepNorm& by) {
        float* out = normed_room.of(hidden_size(step));
        norm_hidden(step, by, out);
        return out;
    }

    void lay(const Weight& weight, const float* inputs, int64_t part) {
        laid_part = part, plain = inputs;
        shuffled = Shuffled(laid_room, weight, 1);
        shuffled.lay(0, weight.columns, [&](int64_t column) { return inputs[column]; });
    }

    // Rows of a piece, and their products.
    struct Some {
        int64_t row, count;
        float sums[SOME_ROWS][1];
    };

    Some multiply(const Product& product, int64_t piece) const {
        Some some;
        some.row = piece * SOME_ROWS, some.count = std::min(SOME_ROWS, product.weight->rows - some.row);
        with_shuffled_dot(*product.weight, [&](auto dot) {
            multiply_rows<1>(dot, product, shuffled, plain, FLOAT32, some.row, some.count, 0, some.sums);
        });
        return some;
    }

    void multiply_attention_inputs(const StepBlock& block, int64_t part, int64_t piece) {
        if (laid_part != part) lay(*block.query.weight, normed(block.attention_norm), part);
        const Product* products[3] = {&block.query, &block.key, &block.value};
        float* outs[3] = {shared.queries, shared.key, shared.value};
        int64_t i = 0;
        for (; piece >= pieces_of(*products[i]); ++i) piece -= pieces_of(*products[i]);
        const Some some = multiply(*products[i], piece);
        std::copy(some.sums[0], some.sums[0] + some.count, outs[i] + some.row);
    }

    void add_to_hidden(const Product& product, const float* inputs, int64_t part, int64_t piece) {
        if (laid_part != part) lay(*product.weight, inputs, part);
        const Some some = multiply(product, piece);
        for (int64_t i = 0; i < some.count; ++i) step.hidden[some.row + i] += some.sums[i][0];
    }

    void multiply_gated(const StepBlock& block, int64_t part, int64_t piece) {
        if (laid_part != part) lay(*block.gate.weight, normed(block.mlp_norm), part);
        const Some gates = multiply(block.gate, piece), ups = multiply(block.up, piece);
        for (int64_t i = 0; i < gates.count; ++i) {
            const float gate = gates.sums[i][0];
            shared.activated[gates.row + i] = gate / (1.0f + exponential(-gate)) * ups.sums[i][0];
        }
    }

    void write_logits(int64_t part, int64_t piece) {
        const Weight& weight = *step.head->weight;
        const bool is_of_bytes = is_uniform_bytes(weight);
        if (laid_part != part && is_of_bytes) {
            laid_part = part, plain = normed(step.norm);
            bytes_inputs = PlainInputs(laid_room, weight, 1);
            bytes_inputs.lay(0, weight.columns, [&](int64_t column) { return plain[column]; });
        }
        if (laid_part != part) lay(weight, normed(step.norm), part);
        Some some;
        if (is_of_bytes) {
            ByteDot dot;
            some.row = piece * SOME_ROWS, some.count = std::min(SOME_ROWS, weight.rows - some.row);
            multiply_rows<1>(dot, *step.head, bytes_inputs, plain, FLOAT32, some.row, some.count, 0, some.sums);
        } else {
            some = multiply(*step.head, piece);
        }
        std::copy(some.sums[0], some.sums[0] + some.count, static_cast<float*>(step.head->out) + some.row);
    }
};

void take_step(const Step& step, int threads) {
    static thread_local KeptArray<float> room;
    const StepBuffers shared(room, step);
    Team::of(threads).run(StepWorker::parts(step), [&] {
        static thread_local KeptArray<float> normed, laid;
        return StepWorker(step, shared, normed, laid);
    });
    norm_hidden(step, step.norm, step.hidden);
}

}  // namespace
