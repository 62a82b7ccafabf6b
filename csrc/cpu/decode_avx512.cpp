#include <immintrin.h>

#include "decode_loops.h"

namespace fastpose {
namespace {

constexpr int64_t kStep = 64;  // four accumulators hide the latency of the maximum

// The maximum returns its second operand when either is NaN, so NaN never becomes the best.
Peak find_peak(const float* map, int64_t cells) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 best[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + kStep <= cells; i += kStep)
    for (int j = 0; j < 4; ++j) best[j] = _mm512_max_ps(_mm512_loadu_ps(map + i + 16 * j), best[j]);
  for (; i < cells; i += 16) {
    const __mmask16 valid = cells - i < 16 ? (1u << (cells - i)) - 1 : 0xffff;
    best[0] = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, valid, map + i), best[0]);
  }
  const float value = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(best[0], best[1]), _mm512_max_ps(best[2], best[3])));

  const __m512 wanted = _mm512_set1_ps(value);
  for (i = 0; i + kStep <= cells; i += kStep) {
    uint64_t hits = 0;
    for (int j = 0; j < 4; ++j) {
      const __m512 here = _mm512_loadu_ps(map + i + 16 * j);
      hits |= uint64_t{_mm512_cmpeq_ps_mask(here, wanted)} << 16 * j;
    }
    if (hits) return {value, i + __builtin_ctzll(hits)};
  }
  for (; i < cells; ++i)
    if (map[i] == value) return {value, i};
  return {value, 0};
}

}  // namespace

const DecodeLoops decode_avx512 = {merge, find_peak, blur, weigh_exponentially};

}  // namespace fastpose
