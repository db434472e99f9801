// The memory that calls use again, for `make sanitize`.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "blocks.h"
#include "check.h"

namespace {

using namespace bptt;

void test_blocks() {
  auto take = [](size_t bytes, size_t* capacity) {
    char* block = static_cast<char*>(take_block(bytes, capacity));
    check(block && reinterpret_cast<uintptr_t>(block) % 64 == 0 && *capacity >= bytes,
          "a block of " + std::to_string(bytes));
    return block;
  };
  const size_t small = size_t{1} << 18, page = size_t{1} << 21;
  size_t capacity = 0, other = 0;
  for (size_t middle : {size_t{1}, size_t{64}, size_t{4096}, small, page, 3 * page})
    for (size_t bytes = middle - 1; bytes <= middle + 1; ++bytes) {
      char* block = take(bytes, &capacity);
      std::memset(block, 1, capacity);
      give_block(block, capacity);
      block = take(bytes, &other);
      if (bytes >= small) check(other < 2 * bytes + page, "a block that is far too large");
      std::memset(block, 2, other);
      give_block(block, other);
    }
  // Again for what fills more than half of it, and for one owner at a time.
  const size_t size = 37 * page;
  char* block = take(size, &capacity);
  give_block(block, capacity);
  check(take(size / 2 + 1, &other) == block && other == capacity, "a block used again");
  char* second = take(size, &other);
  check(second != block, "two owners of a block");
  give_block(block, capacity);
  char* third = take(size / 2 - page, &capacity);
  check(third != block, "a block used for less than half of it");
  give_block(third, capacity);
  give_block(second, other);
  give_block(nullptr, 0);
  check(!take_block(SIZE_MAX, &capacity), "more memory than there is");

  // More blocks, and more bytes, than are kept; what is kept is somebody's once.
  for (size_t bytes : {small + 1, 9 * page, 140 * page}) {
    std::vector<std::pair<char*, size_t>> taken(bytes > 100 * page ? 3 : 100);
    for (int again = 0; again < 2; ++again) {
      for (auto& [address, room] : taken) address = take(bytes, &room), *address = 1;
      std::sort(taken.begin(), taken.end());
      for (size_t i = 1; i < taken.size(); ++i)
        check(taken[i - 1].first + taken[i - 1].second <= taken[i].first, "blocks overlap");
      for (auto& [address, room] : taken) give_block(address, room);
    }
  }
  std::vector<std::thread> owners;
  std::vector<int> wrong(8, 0);
  for (size_t at = 0; at < wrong.size(); ++at)
    owners.emplace_back([&, at] {
      std::mt19937 random(static_cast<unsigned>(at));
      for (int again = 0; again < 300; ++again) {
        size_t room = 0;
        const size_t bytes = small / 2 + random() % (2 * small);
        int* mine = static_cast<int*>(take_block(bytes, &room));
        int* last = mine + bytes / sizeof(int) - 1;
        *mine = *last = static_cast<int>(at);
        std::this_thread::yield();
        wrong[at] += *mine != static_cast<int>(at) || *last != static_cast<int>(at);
        give_block(mine, room);
      }
    });
  for (std::thread& owner : owners) owner.join();
  for (int each : wrong) check(!each, "two owners of a block");
  std::printf("blocks: done\n");
}

}  // namespace

int main() {
  test_blocks();
  return finish();
}
