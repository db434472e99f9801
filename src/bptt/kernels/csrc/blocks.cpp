#include "blocks.h"

#include <cstdlib>
#include <mutex>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bptt {
namespace {

constexpr size_t kSmall = size_t{1} << 15;  // below, the C library keeps its own lists
constexpr size_t kPage = size_t{1} << 21;   // of the large kind, where there is one
constexpr size_t kMostKept = size_t{256} << 20;
constexpr int kMostBlocks = 64;

struct Block {
  void* address;
  size_t capacity;
};

// Blocks that nobody uses, the oldest first.
struct Idle {
  std::mutex mutex;
  Block blocks[kMostBlocks];
  int count = 0;
  size_t bytes = 0;

  Block remove(int at) {
    Block block = blocks[at];
    for (--count; at < count; ++at) blocks[at] = blocks[at + 1];
    bytes -= block.capacity;
    return block;
  }
};

// Never destroyed: a tensor may live longer than the statics of a program.
Idle& idle() {
  static Idle* blocks = new Idle;
  return *blocks;
}

}  // namespace

void* take_block(size_t bytes, size_t* capacity) noexcept {
  if (bytes < kSmall) {
    *capacity = (bytes + 63) / 64 * 64;
    return std::aligned_alloc(64, *capacity ? *capacity : 64);
  }
  {
    // Whoever does not get the lock at once, as in a child of a process that forked
    // while it was held, goes without.
    std::unique_lock<std::mutex> lock(idle().mutex, std::try_to_lock);
    if (lock) {
      int best = -1;
      for (int i = 0; i < idle().count; ++i) {
        size_t size = idle().blocks[i].capacity;
        if (size >= bytes && size / 2 <= bytes &&
            (best < 0 || size < idle().blocks[best].capacity))
          best = i;
      }
      if (best >= 0) {
        Block block = idle().remove(best);
        *capacity = block.capacity;
        return block.address;
      }
    }
  }
  const size_t unit = bytes < kPage ? 4096 : kPage;
  if (bytes > SIZE_MAX - unit) return nullptr;
  *capacity = (bytes + unit - 1) / unit * unit;
  void* block = std::aligned_alloc(unit, *capacity);
#if defined(__linux__)
  if (block && unit == kPage) madvise(block, *capacity, MADV_HUGEPAGE);
#endif
  return block;
}

void give_block(void* block, size_t capacity) noexcept {
  if (!block) return;
  if (capacity >= kSmall && capacity <= kMostKept) {
    std::unique_lock<std::mutex> lock(idle().mutex, std::try_to_lock);
    if (lock) {
      while (idle().count == kMostBlocks || idle().bytes + capacity > kMostKept)
        std::free(idle().remove(0).address);
      idle().blocks[idle().count++] = {block, capacity};
      idle().bytes += capacity;
      return;
    }
  }
  std::free(block);
}

}  // namespace bptt
