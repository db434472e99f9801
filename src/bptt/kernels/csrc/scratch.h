// Memory for the time of a call. Private to each file that includes it, see simd.h.
#pragma once

#include <cstdint>

#include "blocks.h"

namespace bptt {
namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
// Aligned, contents undefined; false if there is none.
template <typename T = float>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(
            take_block(static_cast<size_t>(max(count, 1)) * sizeof(T), &capacity_))) {}
  ~Scratch() { give_block(data_, capacity_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  size_t capacity_;
  T* data_;
};

}  // namespace
}  // namespace bptt
