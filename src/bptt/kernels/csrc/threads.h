// Threads that work on one call together. Declarations alone: the code that includes
// this is built once per variant, and must not emit shared functions of its own.
#pragma once

#include <atomic>

namespace bptt {

class Pool;

// The threads of one call: the calling one, and those of the process's pool if it is
// free. When another call has the pool, this one runs on its own thread alone, which
// never waits and never runs more threads than were asked for.
class Team {
 public:
  explicit Team(int wanted);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // work(context, part) for every part in [0, size), each on its own thread; returns
  // when all are done.
  void run(void (*work)(void* context, int part), void* context);

  // Nanoseconds that threads of such a team need to meet at a barrier and to see what
  // the others have written; measured once, in a few milliseconds at most, and again
  // after a while if it is so much that other programs may have been in the way.
  double meeting();
  // Instead of measuring, for all teams from now on; 0 to measure.
  static void assume_meeting(double nanoseconds);

 private:
  Pool* pool_;
  int size_;
};

// Whether another program has lately kept a thread of a team from its processor for so
// long that little work is done earlier without that thread.
bool crowded();

// Call once, early: from then on a forked child knows that it is one.
void watch_forks();

// Where `parties` threads wait for each other: spins a little, then yields, so that it
// neither sleeps between steps of microseconds nor keeps a processor from the thread
// that it waits for; and sleeps once another program is seen to use the processors.
class Barrier {
 public:
  Barrier();
  void reset(int parties);
  void wait();

 private:
  alignas(64) std::atomic<int> arrived_;
  alignas(64) std::atomic<int> phase_;
  std::atomic<int> asleep_;
  std::atomic<bool> shared_;
  int parties_;
};

}  // namespace bptt
