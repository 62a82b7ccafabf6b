#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace fastpose {
namespace {

constexpr int64_t kSerialPieces = 4;
constexpr int kDefaultThreads = 8;

thread_local bool inside_parallel_for = false;

class Job {
 public:
  Job(int64_t n, int64_t grain, detail::Body body, void* context)
      : n_(n), grain_(grain), body_(body), context_(context) {}

  // Takes pieces until none is left. Runs on the caller and on every helper.
  void work() {
    inside_parallel_for = true;
    try {
      for (int64_t begin; (begin = next_.fetch_add(grain_)) < n_;)
        body_(context_, begin, std::min(begin + grain_, n_));
    } catch (...) {
      next_ = n_;  // the other threads stop after the piece in hand
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    inside_parallel_for = false;
  }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  int helpers_wanted = 0, helpers_inside = 0;  // guarded by the pool's mutex

 private:
  const int64_t n_, grain_;
  const detail::Body body_;
  void* const context_;
  std::atomic<int64_t> next_{0};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

class Pool {
 public:
  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      add_threads(helpers);
      job.helpers_wanted = std::min(helpers, threads_);
      jobs_.push_back(&job);
    }
    for (int i = 0; i < helpers; ++i) arrived_.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    const auto place = std::find(jobs_.begin(), jobs_.end(), &job);
    if (place != jobs_.end()) jobs_.erase(place);  // helpers that come later must not see it
    left_.wait(lock, [&] { return job.helpers_inside == 0; });
  }

 private:
  // Fewer threads than asked for, or none, is no fault: the caller does the work.
  void add_threads(int wanted) {
    // Signals belong to the interpreter's main thread; threads inherit the mask of their maker.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; threads_ < wanted; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      arrived_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      ++job.helpers_inside;
      if (--job.helpers_wanted == 0) jobs_.pop_front();
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.helpers_inside == 0) left_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable arrived_, left_;
  std::deque<Job*> jobs_;
  int threads_ = 0;
};

// Never destroyed: its threads are detached and may outlive static destructors.
std::mutex pool_mutex;
Pool* pool = nullptr;

// A child of fork has none of its parent's threads and may have found the pool's mutex locked, so
// it forgets the pool and makes its own on first use.
Pool& shared_pool() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  static const int registered =
      pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                     [] {
                       pool = nullptr;
                       pool_mutex.unlock();
                     });
  if (registered != 0) throw std::runtime_error("pthread_atfork failed");
  if (!pool) pool = new Pool;
  return *pool;
}

int default_threads() {
  cpu_set_t cores;
  int count = static_cast<int>(std::thread::hardware_concurrency());
  if (sched_getaffinity(0, sizeof cores, &cores) == 0) count = CPU_COUNT(&cores);
  return std::clamp(count, 1, kDefaultThreads);
}

std::atomic<int>& thread_limit() {
  static std::atomic<int> limit{default_threads()};
  return limit;
}

}  // namespace

void set_num_threads(int threads) {
  if (threads < 1)
    throw std::invalid_argument("threads must be at least 1, got " + std::to_string(threads));
  thread_limit() = threads;
}

int get_num_threads() { return thread_limit(); }

void detail::parallel_for(int64_t n, int64_t grain, Body body, void* context) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces = (n + grain - 1) / grain;
  const int threads = static_cast<int>(std::min<int64_t>(get_num_threads(), pieces));
  if (inside_parallel_for || threads < 2 || pieces < kSerialPieces) return body(context, 0, n);
  Job job(n, grain, body, context);
  shared_pool().run(job, threads - 1);
  job.rethrow();
}

}  // namespace fastpose
