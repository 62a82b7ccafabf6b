// The vector form of the byte loops, for a vector type V (AVX2 or AVX-512), in an unnamed namespace
// as in warp_store.h. Pixels are fetched by ordinary eight-byte loads: a tap pair is six bytes, and
// the processors' gather instructions are slower than the loads they stand for.
#pragma once

#include <algorithm>
#include <cmath>

#include "warp_rows.h"
#include "warp_store.h"

namespace fastpose {
namespace {

// Horizontal lerp of three channels, scaled by kWeightOne.
template <class V>
struct Lerped {
  typename V::Float channel[kBytes];
};

template <class V>
inline void put(float* to, typename V::Float value, int count, bool add) {
  if (count == V::kLanes)
    V::store(to, add ? V::add(value, V::load(to)) : value);
  else
    V::store_part(to, add ? V::add(value, V::load_part(to, count)) : value, count);
}

template <class V>
inline Lerped<V> lerp_pairs(const uint8_t* base, const int32_t* offsets, typename V::Int weights) {
  typename V::Int pairs[kBytes];
  V::load_pairs(base, offsets, pairs);
  return {V::to_float(V::madd(pairs[0], weights)), V::to_float(V::madd(pairs[1], weights)),
          V::to_float(V::madd(pairs[2], weights))};
}

template <class V>
void sample(const uint8_t* frame, int64_t row_stride, const Walk& walk, int begin, int end,
            bool add, float* planes, int pitch) {
  using Float = typename V::Float;
  using Int = typename V::Int;
  const Float dx = V::set(static_cast<float>(walk.dx)), dy = V::set(static_cast<float>(walk.dy));
  const Float one = V::set(1.0f), unit = V::set(1.0f / kWeightOne);
  const Int stride = V::set_int(static_cast<int>(row_stride));
  alignas(64) int32_t offsets[V::kLanes];

  for (int u = begin; u < end; u += V::kLanes) {
    const int count = std::min(V::kLanes, end - u);
    // The block's origin in float64, its lanes relative to it in float32: exact to 1e-6 px.
    const double x = walk.x + walk.dx * u, y = walk.y + walk.dy * u;
    const double left = std::floor(x), top = std::floor(y);
    const uint8_t* origin =
        frame + static_cast<int64_t>(top) * row_stride + static_cast<int64_t>(left) * kBytes;
    // Lanes beyond the end repeat the last pixel and are not stored.
    const Float lane = V::min(V::lanes(), V::set(static_cast<float>(count - 1)));
    const Float xs = V::fma(dx, lane, V::set(static_cast<float>(x - left)));
    const Float ys = V::fma(dy, lane, V::set(static_cast<float>(y - top)));
    const Float x0 = V::floor(xs), y0 = V::floor(ys);
    const Int column = V::to_int(x0);
    const Int offset =
        V::add(V::mul(V::to_int(y0), stride), V::add(column, V::add(column, column)));
    V::store_int(offsets, offset);

    const Int t = V::to_int(V::mul(V::sub(xs, x0), V::set(static_cast<float>(kWeightOne))));
    const Int weights = V::pack_weights(t);
    const Float fy = V::sub(ys, y0);
    const Float a = V::mul(V::sub(one, fy), unit), b = V::mul(fy, unit);
    const Lerped<V> above = lerp_pairs<V>(origin, offsets, weights);
    const Lerped<V> below = lerp_pairs<V>(origin + row_stride, offsets, weights);
    for (int c = 0; c < kBytes; ++c)
      put<V>(planes + c * pitch + u, V::fma(b, below.channel[c], V::mul(a, above.channel[c])),
             count, add);
  }
}

template <class V>
void resample(const uint8_t* row, const int32_t* offsets, const uint32_t* weights, int begin,
              int end, bool add, float* planes, int pitch) {
  const typename V::Float unit = V::set(1.0f / kWeightOne);
  alignas(64) int32_t last[V::kLanes];
  for (int u = begin; u < end; u += V::kLanes) {
    const int count = std::min(V::kLanes, end - u);
    const int32_t* taps = offsets + u;
    if (count < V::kLanes) {  // offsets beyond the end need not be inside the row
      for (int i = 0; i < V::kLanes; ++i) last[i] = offsets[std::min(u + i, end - 1)];
      taps = last;
    }
    const Lerped<V> value = lerp_pairs<V>(row, taps, V::load_int(weights + u));
    for (int c = 0; c < kBytes; ++c)
      put<V>(planes + c * pitch + u, V::mul(value.channel[c], unit), count, add);
  }
}

}  // namespace
}  // namespace fastpose
