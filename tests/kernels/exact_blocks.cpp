// Scratch memory for the test program, in place of blocks.cpp: each block ends where its
// size says and is nobody's afterwards, so that a sanitizer sees whoever goes past or
// comes late; and it begins as NaN, so that a result shows whoever reads before writing.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "blocks.h"

namespace bptt {

void* take_block(size_t bytes, size_t* capacity) noexcept {
  void* block = nullptr;
  if (bytes > PTRDIFF_MAX || posix_memalign(&block, 64, bytes)) return nullptr;
  *capacity = bytes;
  std::memset(block, 0xff, bytes);
  return block;
}

void give_block(void* block, size_t) noexcept { std::free(block); }

}  // namespace bptt
