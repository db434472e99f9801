#include "threads.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#define BPTT_POSIX
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bptt {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Long enough to meet a thread that does the same work, in microseconds; short enough
// to give the processor away where more threads than processors run.
constexpr int kSpins = 512;
// Whoever gives the processor away for longer shares it with another program.
constexpr std::chrono::microseconds kOwnTurn(200);

// A thread that begins so late was not only asleep. Once, it may have been new; twice in a
// while, what it had to wait for is likely to be there for a while.
constexpr std::chrono::milliseconds kLate(1), kAWhile(1000);

using Clock = std::chrono::steady_clock;
constexpr Clock::rep kNever = Clock::time_point::min().time_since_epoch().count();
std::atomic<Clock::rep> suspected_until{kNever}, crowded_until{kNever};

void note_late_thread(Clock::time_point now) {
  const Clock::rep until = (now + kAWhile).time_since_epoch().count();
  if (suspected_until.exchange(until, std::memory_order_relaxed) >
      now.time_since_epoch().count())
    crowded_until.store(until, std::memory_order_relaxed);
}

template <typename Done>
bool spin(int times, Done done) {
  for (int i = 0; i < times; ++i) {
    if (done()) return true;
    pause();
  }
  return false;
}

template <typename Done>
void spin_then_yield(Done done) {
  if (spin(kSpins, done)) return;
  while (!done()) std::this_thread::yield();
}

// A sleep while `word` is `value`, and its end for all sleepers. Where a processor is
// shared with another program, who yields waits for a whole slice of it, milliseconds
// at every step, and who was asleep is let in at once.
void sleep_while(std::atomic<int>& word, int value) {
#if defined(__linux__)
  static_assert(sizeof(word) == sizeof(int), "a futex is 32 bits");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  if (word.load(std::memory_order_acquire) == value) std::this_thread::yield();
#endif
}

void wake(std::atomic<int>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

// The OpenMP runtime that PyTorch has loaded, through GNU's stable interface, which
// LLVM's and Intel's runtimes have too. Its threads keep spinning for milliseconds
// after each of PyTorch's operations: threads of our own beside them would share their
// processors with them, and everything would take half as long again.
struct OpenMP {
  void (*parallel)(void (*work)(void*), void* context, unsigned threads, unsigned flags);
  int (*thread_number)();
  int (*team_size)();
  int (*in_parallel)();
  int (*dynamic)();

  explicit operator bool() const {
    return parallel && thread_number && team_size && in_parallel && dynamic;
  }
  // Whether a team has the size that is asked for.
  bool obeys() const { return !in_parallel() && !dynamic(); }
};

// Empty if there is none.
const OpenMP& loaded_openmp() {
  static const OpenMP openmp = [] {
    OpenMP found{};
#if defined(BPTT_POSIX)
    auto find = [](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(
          dlsym(RTLD_DEFAULT, name));
    };
    find("GOMP_parallel", found.parallel);
    find("omp_get_thread_num", found.thread_number);
    find("omp_get_num_threads", found.team_size);
    find("omp_in_parallel", found.in_parallel);
    find("omp_get_dynamic", found.dynamic);
#endif
    return found;
  }();
  return openmp;
}

}  // namespace

Barrier::Barrier() : arrived_(0), phase_(0), asleep_(0), shared_(false), parties_(1) {}

void Barrier::reset(int parties) { parties_ = parties; }

void Barrier::wait() {
  if (parties_ == 1) return;
  int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
    arrived_.store(0, std::memory_order_relaxed);
    // In one order for all: who wakes sees the sleeper, or the sleeper sees the phase.
    phase_.store(phase + 1, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) wake(phase_);
    return;
  }
  auto over = [&] { return phase_.load(std::memory_order_seq_cst) != phase; };
  if (spin(kSpins, over)) return;
  while (!over()) {
    if (shared_.load(std::memory_order_relaxed)) {
      asleep_.fetch_add(1, std::memory_order_seq_cst);
      while (!over()) sleep_while(phase_, phase);
      asleep_.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    auto before = std::chrono::steady_clock::now();
    std::this_thread::yield();
    if (std::chrono::steady_clock::now() - before > kOwnTurn)
      shared_.store(true, std::memory_order_relaxed);
  }
}

// The threads of the process: PyTorch's where it has an OpenMP runtime, else workers of
// our own. One call has them at a time.
class Pool {
 public:
  // Never destroyed: a worker may still wait on it at exit.
  static Pool& get() {
    static std::mutex mutex;
    Pool* pool = current().load(std::memory_order_acquire);
    if (pool) return *pool;
    std::lock_guard<std::mutex> lock(mutex);
    pool = current().load(std::memory_order_acquire);
    if (!pool) {
      pool = new Pool(static_cast<bool>(loaded_openmp()));
      current().store(pool, std::memory_order_release);
    }
    return *pool;
  }

  // In a child, which has none of its parent's threads, and an OpenMP runtime that may
  // wait for them for ever: it begins with a pool of its own.
  static void begin_child() { current().store(new Pool(false)); }

  explicit Pool(bool shared) : shared_(shared) {}

  bool try_take() { return busy_.try_lock(); }
  void give_back() { busy_.unlock(); }

  // How many of `wanted` threads beside the caller's there are, after starting what is
  // missing.
  int grow(int wanted) {
    if (shared_) return loaded_openmp().obeys() ? wanted : 0;
    try {
      while (static_cast<int>(workers_.size()) < wanted) {
        auto worker = std::make_unique<Worker>();
        workers_.reserve(workers_.size() + 1);
        std::thread([serving = worker.get()] { serving->serve(); }).detach();
        workers_.push_back(std::move(worker));
      }
    } catch (const std::system_error&) {  // as many as the system allows
    } catch (const std::bad_alloc&) {
    }
    return std::min(static_cast<int>(workers_.size()), wanted);
  }

  void run(int size, void (*work)(void*, int), void* context) {
    if (shared_) return run_shared(size, work, context);
    pending_.store(size - 1, std::memory_order_relaxed);
    for (int part = 1; part < size; ++part)
      workers_[static_cast<size_t>(part - 1)]->start({work, context, part, &pending_});
    work(context, 0);
    spin_then_yield([&] { return pending_.load(std::memory_order_acquire) == 0; });
  }

 private:
  struct Task {
    void (*work)(void*, int);
    void* context;
    int part;
    std::atomic<int>* pending;
  };

  class Worker {
   public:
    void start(Task task) {
      task_ = task;
      posted_.store(true, std::memory_order_seq_cst);
      if (asleep_.load(std::memory_order_seq_cst)) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_one();
      }
    }

    void serve() {
      for (;;) {
        wait();
        posted_.store(false, std::memory_order_relaxed);
        Task task = task_;
        task.work(task.context, task.part);
        task.pending->fetch_sub(1, std::memory_order_release);
      }
    }

   private:
    // Calls come in bursts, so the next is often microseconds away.
    void wait() {
      for (int i = 0; i < kSpins; ++i) {
        if (posted_.load(std::memory_order_acquire)) return;
        pause();
      }
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.store(true, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return posted_.load(std::memory_order_seq_cst); });
      asleep_.store(false, std::memory_order_relaxed);
    }

    Task task_{};
    std::atomic<bool> posted_{false};
    std::atomic<bool> asleep_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
  };

  static void run_shared(int size, void (*work)(void*, int), void* context) {
    struct Call {
      void (*work)(void*, int);
      void* context;
      int size;
      std::atomic<bool> complete;
    } call{work, context, size, {true}};
    loaded_openmp().parallel(
        [](void* data) {
          Call& mine = *static_cast<Call*>(data);
          const OpenMP& openmp = loaded_openmp();
          if (openmp.team_size() == mine.size)
            mine.work(mine.context, openmp.thread_number());
          else  // the parts would wait for those that are missing
            mine.complete.store(false, std::memory_order_relaxed);
        },
        &call, static_cast<unsigned>(size), 0);
    if (!call.complete.load(std::memory_order_relaxed))
      throw std::runtime_error("the OpenMP runtime gave fewer threads than asked for");
  }

  static std::atomic<Pool*>& current() {
    static std::atomic<Pool*> pool{nullptr};
    return pool;
  }

  const bool shared_;
  std::mutex busy_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<int> pending_{0};
};

void watch_forks() {
#if defined(BPTT_POSIX)
  static std::once_flag once;
  std::call_once(once, [] { pthread_atfork(nullptr, nullptr, Pool::begin_child); });
#endif
}

Team::Team(int wanted) : pool_(nullptr), size_(1) {
  if (wanted <= 1) return;
  Pool& pool = Pool::get();
  if (!pool.try_take()) return;
  pool_ = &pool;
  size_ = 1 + pool.grow(wanted - 1);
}

Team::~Team() {
  if (pool_) pool_->give_back();
}

namespace {

// While it lives, this thread takes numbers below 1e-38 for zero: errors that vanish over
// many steps come to such, and some processors need 100 times as long for them.
class FlushToZero {
 public:
#if defined(__SSE2__)
  FlushToZero() : before_(__builtin_ia32_stmxcsr()) {
    constexpr unsigned kResults = 0x8000, kOperands = 0x40;
    __builtin_ia32_ldmxcsr(before_ | kResults | kOperands);
  }
  ~FlushToZero() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#else
  FlushToZero() {}
#endif
};

}  // namespace

void Team::run(void (*work)(void*, int), void* context) {
  if (size_ == 1) {
    const FlushToZero flush;
    return work(context, 0);
  }
  struct Call {
    void (*work)(void*, int);
    void* context;
    Clock::time_point begin;
  } call{work, context, Clock::now()};
  pool_->run(
      size_,
      [](void* data, int part) {
        const Call& mine = *static_cast<Call*>(data);
        const Clock::time_point now = Clock::now();
        if (now - mine.begin > kLate) note_late_thread(now);
        const FlushToZero flush;
        mine.work(mine.context, part);
      },
      &call);
}

bool crowded() {
  return Clock::now().time_since_epoch().count() <
         crowded_until.load(std::memory_order_relaxed);
}

}  // namespace bptt
