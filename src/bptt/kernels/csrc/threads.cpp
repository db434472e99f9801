#include "threads.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
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

template <typename Done>
void spin_then_yield(Done done) {
  for (int i = 0; i < kSpins; ++i) {
    if (done()) return;
    pause();
  }
  while (!done()) std::this_thread::yield();
}

}  // namespace

Barrier::Barrier() : arrived_(0), phase_(0), parties_(1) {}

void Barrier::reset(int parties) { parties_ = parties; }

void Barrier::wait() {
  if (parties_ == 1) return;
  int phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  spin_then_yield([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

// Workers that wait for work. One call has them at a time.
class Pool {
 public:
  // The process's pool. Never destroyed: a worker may still wait on it at exit.
  static Pool& get() {
    static std::once_flag once;
    std::call_once(once, [] {
      current() = new Pool;
#if defined(__unix__) || defined(__APPLE__)
      // A child process has none of the workers: it begins with a pool of its own.
      pthread_atfork(nullptr, nullptr, [] { current() = new Pool; });
#endif
    });
    return *current();
  }

  bool try_take() { return busy_.try_lock(); }
  void give_back() { busy_.unlock(); }

  // How many of `wanted` workers there are, after starting what is missing.
  int grow(int wanted) {
    try {
      while (static_cast<int>(workers_.size()) < wanted) {
        workers_.push_back(std::make_unique<Worker>());
        Worker* worker = workers_.back().get();
        try {
          std::thread([worker] { worker->serve(); }).detach();
        } catch (const std::system_error&) {
          workers_.pop_back();
          break;
        }
      }
    } catch (const std::bad_alloc&) {
    }
    int have = static_cast<int>(workers_.size());
    return have < wanted ? have : wanted;
  }

  void run(int size, void (*work)(void*, int), void* context) {
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

  static Pool*& current() {
    static Pool* pool = nullptr;
    return pool;
  }

  std::mutex busy_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::atomic<int> pending_{0};
};

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

void Team::run(void (*work)(void*, int), void* context) {
  if (size_ == 1)
    work(context, 0);
  else
    pool_->run(size_, work, context);
}

}  // namespace bptt
