// What a test program has found wrong.
#pragma once

#include <atomic>
#include <cstdio>
#include <string>

namespace {

std::atomic<int> failures{0};

inline void check(bool right, const std::string& what) {
  if (!right && ++failures <= 20) std::printf("  FAILED: %s\n", what.c_str());
}

// The exit status.
inline int finish() {
  std::printf("%s: %d failures\n", failures ? "FAILED" : "passed", failures.load());
  return failures > 0;
}

}  // namespace
