#include "decode_loops.h"

namespace fastpose {
namespace {

// Several maxima side by side: the order of the comparisons is then the compiler's to choose.
Peak find_peak(const float* map, int64_t cells) {
  float best[kLanes];
  for (float& lane : best) lane = -__builtin_inff();
  int64_t i = 0;
  for (; i + kLanes <= cells; i += kLanes)
    for (int l = 0; l < kLanes; ++l) best[l] = map[i + l] > best[l] ? map[i + l] : best[l];
  float value = best[0];
  for (int l = 1; l < kLanes; ++l) value = best[l] > value ? best[l] : value;
  for (; i < cells; ++i) value = map[i] > value ? map[i] : value;

  for (i = 0; i < cells; ++i)
    if (map[i] == value) return {value, i};
  return {value, 0};
}

}  // namespace

const DecodeLoops decode_scalar = {merge, find_peak, blur, weigh_exponentially};

}  // namespace fastpose
