// Memory that is used again. The arrays of a training step are of the same sizes at
// every step, and memory fresh from the system costs more than the work on it: a page
// is cleared at its first touch, a microsecond for four kilobytes.
#pragma once

#include <cstddef>

namespace bptt {

// At least `bytes` of memory, aligned for vectors, contents undefined; null if there is
// none. `capacity` must be given back with it.
void* take_block(size_t bytes, size_t* capacity) noexcept;
void give_block(void* block, size_t capacity) noexcept;

}  // namespace bptt
