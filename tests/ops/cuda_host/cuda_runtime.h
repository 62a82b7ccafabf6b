// As much of CUDA's language as csrc/cuda/warp.cuh uses, for a C++ compiler: a kernel becomes a
// function, which `run_grid` calls once for every thread of a grid, one after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx;

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

using std::max;
using std::min;

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float value) { return value > 0 ? min(value, 1.0f) : 0.0f; }

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
inline uint32_t __dp2a_lo(uint32_t halves, uint32_t bytes, uint32_t sum) {
  return sum + (halves & 0xffff) * (bytes & 0xff) + (halves >> 16) * (bytes >> 8 & 0xff);
}
inline uint32_t __dp2a_hi(uint32_t halves, uint32_t bytes, uint32_t sum) {
  return __dp2a_lo(halves, bytes >> 16, sum);
}

inline float atomicAdd(float* address, float value) {
  const float before = *address;
  *address += value;
  return before;
}

// What each thread of a block passes to others, in order. Threads run one after the other, so a
// block that passes anything runs twice, and in the second run gets what the first has passed:
// right for values that do not depend on others passed before.
struct Passed {
  std::map<unsigned, std::vector<uint32_t>> values;
  std::map<unsigned, size_t> next;
  bool known = false;
};
inline Passed passed;

inline uint32_t __shfl_xor_sync(uint32_t lanes, uint32_t value, int distance) {
  const unsigned thread = threadIdx.y * 32 + threadIdx.x, other = thread ^ distance;
  if (!(lanes >> threadIdx.x & 1) || !(lanes >> (threadIdx.x ^ distance) & 1)) std::abort();
  if (!passed.known) passed.values[thread].push_back(value);
  return passed.known ? passed.values.at(other).at(passed.next[thread]++) : 0;
}

// kernel(arguments...) by every thread of the grid.
template <class Kernel, class... Arguments>
void run_grid(dim3 grid, dim3 block, const Kernel& kernel, const Arguments&... arguments) {
  const auto run_block = [&] {
    for (unsigned y = 0; y < block.y; ++y)
      for (unsigned x = 0; x < block.x; ++x) {
        threadIdx = dim3(x, y, 0);
        kernel(arguments...);
      }
  };
  dim3 b;
  for (b.z = 0; b.z < grid.z; ++b.z)
    for (b.y = 0; b.y < grid.y; ++b.y)
      for (b.x = 0; b.x < grid.x; ++b.x) {
        blockIdx = b;
        passed = {};
        run_block();
        if (passed.values.empty()) continue;
        passed.known = true;
        run_block();
      }
}
