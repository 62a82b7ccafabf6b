// A small thread pool whose caller helps: it takes work until none is left and then waits only for
// pieces that another thread has already begun, so a thread that gets no core costs nothing. (An
// OpenMP barrier waits for every thread; on a busy machine that took 40 times as long as the work.)
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastpose {

// How many threads one parallel_for may use, the caller among them. At first: the cores this
// process may run on, at most 8.
void set_num_threads(int threads);  // throws std::invalid_argument below 1
int get_num_threads();

namespace detail {
using Body = void (*)(void* context, int64_t begin, int64_t end);
void parallel_for(int64_t n, int64_t grain, Body body, void* context);
}  // namespace detail

// Calls fn(begin, end) for pieces that cover [0, n) once. `grain` is the number of items that take
// about a quarter of a millisecond: pieces are that large, and fewer than four of them (1 ms) are
// done by the caller alone. An exception thrown by fn is thrown again here after all running pieces
// have ended. A call from inside fn runs serially.
template <class Fn>
void parallel_for(int64_t n, int64_t grain, Fn&& fn) {
  using F = std::remove_reference_t<Fn>;
  detail::parallel_for(
      n, grain,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace fastpose
