// Memory that a thread keeps from one call to the next: fresh pages would cost more than what is done with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

// An array that begins at a line of the cache, kept for the thread's next call.
template <typename T> class KeptArray {
    T* values = nullptr;
    size_t held = 0;

  public:
    ~KeptArray() { free(values); }
    T* of(int64_t count) {
        const size_t bytes = (size_t(count) * sizeof(T) + 63) / 64 * 64;
        if (bytes > held) {
            free(values);
            held = 0;
            values = static_cast<T*>(aligned_alloc(64, bytes));
            if (!values) throw std::bad_alloc();
            held = bytes;
        }
        return values;
    }
};

}  // namespace
