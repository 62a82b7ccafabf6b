// The loops of decode that profit from vectors, once for each instruction set. Everything here has
// internal linkage: a file compiled for AVX-512 must not lend its code to the others.
#pragma once

#include <cstring>
#include <type_traits>

#include "decode.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastpose {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

struct BFloat16 {
  uint16_t bits;
};
inline float to_float(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

struct Float16 {
  uint16_t bits;
};
#if defined(__F16C__)
inline float to_float(Float16 value) { return _cvtsh_ss(value.bits); }
#else
inline float to_float(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  if (exponent == 0) {  // subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 31 ? 255 : exponent + 112;
  return from_bits(sign | widened << 23 | fraction << 13);
}
#endif

template <class T>
void join_stages(const T* __restrict__ in, int64_t stages, int64_t stride, bool mean, int64_t cells,
                 float* __restrict__ out) {
  for (int64_t i = 0; i < cells; ++i) out[i] = to_float(in[i]);
  for (int64_t s = 1; s < stages; ++s) {
    const T* __restrict__ stage = in + s * stride;
    for (int64_t i = 0; i < cells; ++i) out[i] += to_float(stage[i]);
  }
  if (!mean) return;
  const float count = static_cast<float>(stages);
  for (int64_t i = 0; i < cells; ++i) out[i] /= count;
}

template <class T>
const float* joined(const DecodeJob& job, const void* maps, int64_t index, float* room) {
  const int64_t cells = int64_t{job.h} * job.w;
  const T* in = static_cast<const T*>(maps) + index * cells;
  if constexpr (std::is_same_v<T, float>)
    if (job.stages == 1) return in;
  join_stages(in, job.stages, job.n * job.k * cells, job.mean, cells, room);
  return room;
}

const float* joined(const DecodeJob& job, const void* maps, int64_t index, float* room) {
  switch (job.type) {
    case Real::F16:
      return joined<Float16>(job, maps, index, room);
    case Real::Bf16:
      return joined<BFloat16>(job, maps, index, room);
    default:
      return joined<float>(job, maps, index, room);
  }
}

const float* merge(const DecodeJob& job, int64_t index, const DecodeRoom& room) {
  const float* map = joined(job, job.maps, index, room.map);
  if (!job.flipped) return map;
  const int64_t partner = index - index % job.k + job.partner[index % job.k];
  const float* mirrored = joined(job, job.flipped, partner, room.mirrored);
  const int w = job.w;
  for (int y = 0; y < job.h; ++y) {
    const float* straight = map + int64_t{y} * w;
    const float* back = mirrored + int64_t{y + 1} * w - 1;  // read leftwards
    float* out = room.map + int64_t{y} * w;
    const float first = (straight[0] + back[0]) * 0.5f;
    for (int x = job.flip_shift; x < w; ++x)
      out[x] = (straight[x] + back[job.flip_shift - x]) * 0.5f;
    out[0] = first;  // the column that a shift leaves in place
  }
  return room.map;
}

// Mirrored without repeating the edge.
inline int mirror(int i, int size) {
  if (size == 1) return 0;
  while (i < 0 || i >= size) i = i < 0 ? -i : 2 * (size - 1) - i;
  return i;
}

// The cells round (x, y) that the window's blur reads, as [patch_rows][patch_stride].
void fill_patch(const DecodeJob& job, const float* map, int x, int y, Border border,
                double* __restrict__ patch) {
  const int reach = job.radius + kReach, rows = patch_rows(job.radius);
  const int stride = patch_stride(job.radius), h = job.h, w = job.w;
  const int left = x - reach, right = left + rows;
  for (int i = 0; i < rows; ++i, patch += stride) {
    int row = y - reach + i;
    const bool outside = row < 0 || row >= h;
    if (outside && border == Border::Zero) {
      for (int j = 0; j < stride; ++j) patch[j] = 0.0;
      continue;
    }
    if (outside) row = mirror(row, h);
    const float* source = map + int64_t{row} * w;
    if (left >= 0 && right <= w) {
      for (int j = 0; j < rows; ++j) patch[j] = clean(source[left + j]);
    } else if (border == Border::Zero) {
      for (int j = 0; j < rows; ++j) {
        const int column = left + j;
        patch[j] = column >= 0 && column < w ? clean(source[column]) : 0.0f;
      }
    } else {
      for (int j = 0; j < rows; ++j) patch[j] = clean(source[mirror(left + j, w)]);
    }
    for (int j = rows; j < stride; ++j) patch[j] = 0.0;
  }
}

// lanes[l] = sum over t of taps[t] * in[t * step + l].
inline void weigh(const double* taps, int count, const double* in, int step,
                  double* __restrict__ lanes) {
  double sums[kLanes] = {};
  for (int t = 0; t < count; ++t)
    for (int l = 0; l < kLanes; ++l) sums[l] += taps[t] * in[int64_t{t} * step + l];
  for (int l = 0; l < kLanes; ++l) lanes[l] = sums[l];
}

void blur_window(const DecodeJob& job, const float* map, int x, int y, Border border,
                 const DecodeRoom& room, Window& window) {
  fill_patch(job, map, x, y, border, room.patch);
  const int stride = patch_stride(job.radius), count = 2 * job.radius + 1;
  for (int i = 0; i < kSide; ++i) {
    double* row = room.half_done + int64_t{i} * stride;
    for (int j = 0; j < stride; j += kLanes)
      weigh(job.taps, count, room.patch + int64_t{i} * stride + j, stride, row + j);
    double lanes[kLanes];
    weigh(job.taps, count, row, 1, lanes);
    for (int j = 0; j < kSide; ++j) window[i][j] = lanes[j];
  }
}

double blur_map(const DecodeJob& job, const float* map, const DecodeRoom& room) {
  const int h = job.h, w = job.w, radius = job.radius;
  // Columns first: every sum runs along whole rows.
  for (int y = 0; y < h; ++y) {
    double* __restrict__ sums = room.columns + int64_t{y} * w;
    for (int x = 0; x < w; ++x) sums[x] = 0.0;
    for (int t = -radius; t <= radius; ++t) {
      if (y + t < 0 || y + t >= h) continue;
      const double tap = job.taps[t + radius];
      const float* __restrict__ source = map + int64_t{y + t} * w;
      for (int x = 0; x < w; ++x) sums[x] += tap * clean(source[x]);
    }
  }
  double best = -__builtin_inf();
  for (int y = 0; y < h; ++y) {
    const double* __restrict__ source = room.columns + int64_t{y} * w;
    double* __restrict__ sums = room.patch;  // at least w, see DecodeRoom
    for (int x = 0; x < w; ++x) sums[x] = 0.0;
    for (int t = -radius; t <= radius; ++t) {
      const double tap = job.taps[t + radius];
      const int begin = t < 0 ? -t : 0, end = t > 0 ? w - t : w;
      for (int x = begin; x < end; ++x) sums[x] += tap * source[x + t];
    }
    float* __restrict__ out = room.blurred + int64_t{y} * w;
    for (int x = 0; x < w; ++x) {
      out[x] = static_cast<float>(sums[x]);
      best = sums[x] > best ? sums[x] : best;
    }
  }
  return best;
}

}  // namespace
}  // namespace fastpose
