// What Python cannot reach of csrc/pool.cpp: exceptions, nesting, coverage. Exit status 0: all
// holds.
#include "pool.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

using fastpose::parallel_for;

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

void every_item_once(int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> seen(n);
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[i];
  });
  for (const auto& count : seen) require(count == 1, "every item is done once");
}

void small_work_stays_on_the_caller() {
  const auto caller = std::this_thread::get_id();
  int calls = 0;
  parallel_for(30, 10, [&](int64_t begin, int64_t end) {
    ++calls;
    require(std::this_thread::get_id() == caller, "three pieces run on the caller");
    require(begin == 0 && end == 30, "three pieces are one call");
  });
  require(calls == 1, "three pieces are one call");
}

void exceptions_reach_the_caller() {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> running{0};
    bool caught = false;
    try {
      parallel_for(1000, 1, [&](int64_t begin, int64_t) {
        ++running;
        if (begin == 500) {
          --running;
          throw std::runtime_error("item 500");
        }
        --running;
      });
    } catch (const std::runtime_error& error) {
      caught = std::string(error.what()) == "item 500";
    }
    require(caught, "the exception arrives");
    require(running == 0, "no piece runs after the call has ended");
  }
  every_item_once(1000, 1);  // the pool still works
}

void nested_calls_run_serially() {
  std::atomic<int64_t> sum{0};
  parallel_for(64, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parallel_for(64, 1, [&](int64_t inner_begin, int64_t inner_end) {
        require(inner_begin == 0 && inner_end == 64, "an inner call is one piece");
        sum += inner_end - inner_begin;
      });
  });
  require(sum == 64 * 64, "inner calls are complete");
  every_item_once(1000, 1);  // the caller is parallel again
}

void many_callers_at_once() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i)
    callers.emplace_back([] {
      for (int round = 0; round < 50; ++round) every_item_once(200, 1);
    });
  for (auto& caller : callers) caller.join();
}

void one_thread_is_one_call() {
  fastpose::set_num_threads(1);
  int calls = 0;
  parallel_for(1000, 1, [&](int64_t, int64_t) { ++calls; });
  require(calls == 1, "one thread takes everything in one piece");
}

}  // namespace

int main() {
  fastpose::set_num_threads(4);
  for (const int64_t n : {0, 1, 3, 4, 5, 1000})
    for (const int64_t grain : {0, 1, 7, 5000}) every_item_once(n, grain);
  small_work_stays_on_the_caller();
  exceptions_reach_the_caller();
  nested_calls_run_serially();
  many_callers_at_once();
  one_thread_is_one_call();
}
