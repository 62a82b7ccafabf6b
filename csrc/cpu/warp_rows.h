// The inner loops of warp, one table for each instruction set. A row of an output window is three
// planes of float sums, `pitch` apart, in source channel order.
#pragma once

#include <cstdint>

#include "fastpose.h"

namespace fastpose {

constexpr int kBytes = 3;  // of one interleaved pixel

// Bilinear weights along x as two 15-bit integers: 1 - t in the low half, t in the high half of a
// word. They sum to kWeightOne exactly; the rounding of t moves a value by at most 255 / 2^16.
constexpr int kWeightOne = 32767;

// Positions x + dx * u, y + dy * u along an output row.
struct Walk {
  double x, dx, y, dy;
};

// A row as a * above + b * below; without `below` it is `above` alone.
struct Blend {
  const float* above;
  const float* below;
  float a, b;
};

struct WarpRows {
  // One sample for every u in [begin, end), added to what is there or, without `add`, put in its
  // place. The caller promises that all of them lie so far inside that eight bytes may be read at
  // each tap of both rows, with 1/64 px to spare.
  void (*sample)(const uint8_t* frame, int64_t row_stride, const Walk& walk, int begin, int end,
                 bool add, float* planes, int pitch);

  // lerp(row[offset], row[offset + 3], weight) for every u in [begin, end), added or put; eight
  // bytes may be read at each offset.
  void (*resample)(const uint8_t* row, const int32_t* offsets, const uint32_t* weights, int begin,
                   int end, bool add, float* planes, int pitch);

  // sum = row or, with `add`, sum += row; n values.
  void (*blend)(const Blend& row, int n, bool add, float* sum);

  // out[i * stride] = row[i] * scale + shift in the output's type, rounded to nearest even.
  void (*store)(const Blend& row, float scale, float shift, int n, Real type, void* out,
                int64_t stride);
};

#if defined(__x86_64__)
const WarpRows& warp_rows_avx2();
const WarpRows& warp_rows_avx512();
#endif

}  // namespace fastpose
