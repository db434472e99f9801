// What it costs threads to meet, which decides how they divide a loop through time.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <vector>

#include "threads.h"

namespace bptt {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kUntilAgain(1000);

// A team that meets over and over, as in a loop through time.
struct Meetings {
  static constexpr int kRounds = 128;
  static constexpr int kTogether = 16;  // rounds of which the mean is taken
  static constexpr std::chrono::milliseconds kPatience{2};
  static constexpr size_t kLines = 16;  // each 64 bytes

  explicit Meetings(int size) : size(size), written(static_cast<size_t>(size) * kLines) {
    barrier.reset(size);
  }

  void work(int part) {
    Line* mine = &written[static_cast<size_t>(part) * kLines];
    Line* others = &written[static_cast<size_t>((part + 1) % size) * kLines];
    const auto begin = Clock::now();
    auto before = begin, now = begin;
    for (int round = 0;; ++round) {
      for (size_t i = 0; i < kLines; ++i)
        mine[i].value.store(round, std::memory_order_relaxed);
      // Before they meet, so that all see the same.
      if (part == 0 && now - begin > kPatience) last.store(round);
      barrier.wait();
      for (size_t i = 0; i < kLines; ++i) others[i].value.load(std::memory_order_relaxed);
      const bool over = round >= last.load();
      const int rounds = round % kTogether + 1;
      if (part == 0) now = Clock::now();
      if (part == 0 && (over || rounds == kTogether)) {
        const std::chrono::duration<double, std::nano> all = now - before;
        if (best == 0 || all.count() / rounds < best) best = all.count() / rounds;
        before = now;
      }
      if (over) return;
    }
  }

  struct alignas(64) Line {
    std::atomic<int> value{0};
  };
  const int size;
  std::vector<Line> written;
  Barrier barrier;
  std::atomic<int> last{kRounds - 1};
  double best = 0;
};

// By the size of the team: nanoseconds, 0 where nothing is known, and when to measure again
// what may be so much for other programs' sake.
struct Known {
  std::atomic<double> nanoseconds;
  std::atomic<Clock::rep> again;
};
constexpr int kMostSizes = 64;
constexpr double kSuspicious = 1000;
Known known_meetings[kMostSizes + 1];

}  // namespace

double Team::meeting() {
  if (size_ == 1) return 0;
  Known& known = known_meetings[std::min(size_, kMostSizes)];
  const double before = known.nanoseconds.load(std::memory_order_relaxed);
  if (before != 0 && before < kSuspicious) return before;
  const Clock::time_point now = Clock::now();
  if (before != 0 &&
      now.time_since_epoch().count() < known.again.load(std::memory_order_relaxed))
    return before;
  Meetings meetings(size_);
  run([](void* context, int part) { static_cast<Meetings*>(context)->work(part); },
      &meetings);
  const double found = before == 0 ? meetings.best : std::min(before, meetings.best);
  known.nanoseconds.store(found, std::memory_order_relaxed);
  known.again.store((now + kUntilAgain).time_since_epoch().count(),
                    std::memory_order_relaxed);
  return found;
}

void Team::assume_meeting(double nanoseconds) {
  for (Known& known : known_meetings) {
    known.nanoseconds.store(nanoseconds, std::memory_order_relaxed);
    known.again.store(std::numeric_limits<Clock::rep>::max(), std::memory_order_relaxed);
  }
}

}  // namespace bptt
