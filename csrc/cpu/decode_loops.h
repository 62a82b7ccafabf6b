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

// Neighbours side by side in one register: of plain loops gcc 12 makes gathers, scatters and sums
// across the taps, at ten times the cost, and a type wider than the registers it keeps in memory.
#if defined(__AVX512F__)
constexpr int kWidth = 8;
#elif defined(__AVX2__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif
static_assert(kLanes % kWidth == 0, "rows are padded to whole vectors");
typedef double Vector __attribute__((vector_size(kWidth * sizeof(double))));
typedef float Floats __attribute__((vector_size(kWidth * sizeof(float))));

// By reference: how such a type is passed depends on the instruction set.
inline void load(const double* in, Vector& values) { std::memcpy(&values, in, sizeof values); }
inline void store(double* out, const Vector& values) { std::memcpy(out, &values, sizeof values); }

inline void fill(double* out, int64_t count, double value) {
  for (int64_t j = 0; j < count; ++j) out[j] = value;
}

// `count` cells cleaned. Vectors are whole as long as `room` cells can be read and written.
inline void widen(const float* in, int count, int64_t room, double* out) {
  int j = 0;
  for (; j < count && j + kWidth <= room; j += kWidth) {
    Floats values;
    std::memcpy(&values, in + j, sizeof values);
    store(out + j, __builtin_convertvector(values == values ? values : Floats{}, Vector));
  }
  for (; j < count; ++j) out[j] = clean(in[j]);
}

// The region and `radius` cells round it into room.patch.
void fill_patch(const DecodeJob& job, const float* map, const Region& region, Border border,
                double* __restrict__ patch) {
  const int h = job.h, w = job.w, left = region.left - job.radius;
  const int rows = region.height + 2 * job.radius, columns = region.width + 2 * job.radius;
  const int stride = patch_stride(region.width, job.radius);
  for (int i = 0; i < rows; ++i, patch += stride) {
    int row = region.top - job.radius + i;
    const bool outside = row < 0 || row >= h;
    if (outside && border == Border::Zero) {
      fill(patch, stride, 0.0);
      continue;
    }
    if (outside) row = mirror(row, h);
    const int64_t first = int64_t{row} * w + left;
    const int begin = left < 0 ? -left : 0, end = left + columns > w ? w - left : columns;
    const int64_t readable = int64_t{h} * w - first;
    widen(map + first + begin, end - begin, (readable < stride ? readable : stride) - begin,
          patch + begin);
    fill(patch + end, stride - end, 0.0);
    if (border == Border::Zero) {
      fill(patch, begin, 0.0);
      continue;
    }
    const float* source = map + int64_t{row} * w;
    for (int j = 0; j < begin; ++j) patch[j] = clean(source[mirror(left + j, w)]);
    for (int j = end; j < columns; ++j) patch[j] = clean(source[mirror(left + j, w)]);
  }
}

// What is summed together, kRows rows of kParts vectors: a window has that many rows, and more sums
// would not stay in 16 registers.
constexpr int kRows = kSide, kParts = kWidth < kLanes ? 2 : 1, kTile = kParts * kWidth;

// out[r * out_step + l] = sum over t of taps[t] * in[r * in_step + t * tap_step + l], for `rows`
// rows of kTile cells: as many sums side by side, as each must wait for its own last addition.
template <int rows>
inline void weigh(const double* taps, int count, const double* in, int64_t in_step,
                  int64_t tap_step, double* out, int64_t out_step) {
  Vector sums[rows][kParts] = {}, values;
  for (int t = 0; t < count; ++t, in += tap_step)
    for (int r = 0; r < rows; ++r)
      for (int p = 0; p < kParts; ++p) {
        load(in + r * in_step + p * kWidth, values);
        sums[r][p] += taps[t] * values;
      }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < kParts; ++p) store(out + r * out_step + p * kWidth, sums[r][p]);
}

// The same for any number of rows, of whole blocks.
void weigh_rows(const double* taps, int count, int height, int width, const double* in,
                int64_t in_step, int64_t tap_step, double* out, int64_t out_step) {
  int i = 0;
  for (; i + kRows <= height; i += kRows)
    for (int j = 0; j < width; j += kTile)
      weigh<kRows>(taps, count, in + i * in_step + j, in_step, tap_step, out + i * out_step + j,
                   out_step);
  for (; i < height; ++i)
    for (int j = 0; j < width; j += kTile)
      weigh<1>(taps, count, in + i * in_step + j, in_step, tap_step, out + i * out_step + j,
               out_step);
}

void blur(const DecodeJob& job, const float* map, const Region& region, Border border,
          const DecodeRoom& room, double* out) {
  fill_patch(job, map, region, border, room.patch);
  const int count = 2 * job.radius + 1, used = whole_blocks(region.width + 2 * job.radius);
  const int64_t stride = patch_stride(region.width, job.radius);
  weigh_rows(job.taps, count, region.height, used, room.patch, stride, stride, room.columns,
             stride);
  for (int i = 0; i < region.height; ++i)
    fill(room.columns + i * stride + used, stride - used, 0.0);
  const int blocks = whole_blocks(region.width);
  weigh_rows(job.taps, count, region.height, blocks, room.columns, stride, 1, out, blocks);
}

// values = exp(values), relatively to 1e-11; 1e-308 for all that is lower.
inline void exponentiate(Vector& values) {
  typedef int64_t Bits __attribute__((vector_size(kWidth * sizeof(int64_t))));
  constexpr double kLog2E = 1.4426950408889634, kLn2High = 0.693147180369123816490,
                   kLn2Low = 1.90821492927058770002e-10;
  constexpr double kRounder = 0x1.8p52;  // a sum with it holds a whole number in its low bits
  const Vector lowest = Vector{} - 708.0, highest = Vector{} + 710.0;  // which gives infinity
  values = values < lowest ? lowest : values;
  values = values > highest ? highest : values;
  const Vector shifted = values * kLog2E + kRounder, whole = shifted - kRounder;
  const Vector rest = values - whole * kLn2High - whole * kLn2Low;  // at most ln 2 / 2
  Vector sum = Vector{} + 1.0 / 3628800.0;
  constexpr double kFactorials[] = {362880.0, 40320.0, 5040.0, 720.0, 120.0,
                                    24.0,     6.0,     2.0,    1.0,   1.0};
  for (const double factorial : kFactorials) sum = sum * rest + 1.0 / factorial;
  Bits exponent;
  std::memcpy(&exponent, &shifted, sizeof exponent);
  exponent = (exponent + 1023) << 52;
  Vector power;
  std::memcpy(&power, &exponent, sizeof power);
  values = sum * power;
}

inline double sum_of(const Vector& values) {
  double sum = 0.0;
  for (int l = 0; l < kWidth; ++l) sum += values[l];
  return sum;
}

Moments weigh_exponentially(const DecodeJob& job, const float* map, int x, int y,
                            const DecodeRoom& room) {
  const int reach = job.radius + 1, left = x < reach ? 0 : x - reach;
  const int count = (x + reach < job.w ? x + reach + 1 : job.w) - left;
  const int top = y < reach ? 0 : y - reach, bottom = y + reach < job.h ? y + reach + 1 : job.h;
  const double steepness = kSoftSharpness / clean(map[int64_t{y} * job.w + x]);
  fill(room.patch, whole_blocks(count), -__builtin_inf());  // past the last cell: no weight
  Vector total = {}, sum_x = {}, sum_y = {}, weights, dx, steps;
  for (int l = 0; l < kWidth; ++l) steps[l] = l;
  for (int row = top; row < bottom; ++row) {
    widen(map + int64_t{row} * job.w + left, count, count, room.patch);
    for (int j = 0; j < count; j += kWidth) {
      load(room.patch + j, weights);
      weights = weights * steepness - kSoftSharpness;
      exponentiate(weights);
      dx = steps + double(left + j - x);
      total += weights;
      sum_x += weights * dx;
      sum_y += weights * double(row - y);
    }
  }
  return {sum_of(total), sum_of(sum_x), sum_of(sum_y)};
}

}  // namespace
}  // namespace fastpose
