#include <immintrin.h>

#include "decode_loops.h"

namespace fastpose {
namespace {

constexpr int64_t kStep = 32;  // four accumulators hide the latency of the maximum

// The maximum returns its second operand when either is NaN, so NaN never becomes the best.
Peak find_peak(const float* map, int64_t cells) {
  const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
  __m256 best[4] = {lowest, lowest, lowest, lowest};
  int64_t i = 0;
  for (; i + kStep <= cells; i += kStep)
    for (int j = 0; j < 4; ++j) best[j] = _mm256_max_ps(_mm256_loadu_ps(map + i + 8 * j), best[j]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes,
                  _mm256_max_ps(_mm256_max_ps(best[0], best[1]), _mm256_max_ps(best[2], best[3])));
  float value = lanes[0];
  for (int j = 1; j < 8; ++j) value = lanes[j] > value ? lanes[j] : value;
  for (; i < cells; ++i) value = map[i] > value ? map[i] : value;

  const __m256 wanted = _mm256_set1_ps(value);
  for (i = 0; i + kStep <= cells; i += kStep) {
    uint32_t hits = 0;
    for (int j = 0; j < 4; ++j) {
      const __m256 equal = _mm256_cmp_ps(_mm256_loadu_ps(map + i + 8 * j), wanted, _CMP_EQ_OQ);
      hits |= static_cast<uint32_t>(_mm256_movemask_ps(equal)) << 8 * j;
    }
    if (hits) return {value, i + __builtin_ctz(hits)};
  }
  for (; i < cells; ++i)
    if (map[i] == value) return {value, i};
  return {value, 0};
}

}  // namespace

const DecodeLoops decode_avx2 = {merge, find_peak, blur, weigh_exponentially};

}  // namespace fastpose
