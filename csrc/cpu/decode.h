// What decode.cpp and its vector loops share.
#pragma once

#include <cstdint>

#include "fastpose.h"

namespace fastpose {

struct Peak {
  float value;    // -infinity where every cell is NaN or -infinity
  int64_t index;  // the first cell of that value, in row order
};

// Room for the intermediate values of one map, made once per thread and call.
struct DecodeRoom {
  float* map;         // [h * w]: stages and mirrored maps merged
  float* mirrored;    // [h * w]
  float* blurred;     // [h * w], where the method blurs whole maps
  double* columns;    // [h * w], the same
  double* patch;      // [patch_rows * patch_stride], the neighbourhood of a peak
  double* half_done;  // [window side * patch_stride]
};

// A square of blurred cells round a peak: value (dx, dy) at [dy + kReach][dx + kReach].
constexpr int kReach = 2;
constexpr int kSide = 2 * kReach + 1;
using Window = double[kSide][kSide];

constexpr int kLanes = 8;
constexpr int patch_rows(int radius) { return 2 * radius + kSide; }
// Rows are read in blocks of kLanes, the last of them from column 2 * radius on.
constexpr int patch_stride(int radius) { return (2 * radius + 2 * kLanes - 1) / kLanes * kLanes; }

enum class Border { Zero, Mirror };

struct DecodeLoops {
  // The stages and the mirrored maps of map `index`: a pointer to the input where there is nothing
  // to merge, else to room.map.
  const float* (*merge)(const DecodeJob& job, int64_t index, const DecodeRoom& room);
  Peak (*find_peak)(const float* map, int64_t cells);
  void (*blur_window)(const DecodeJob& job, const float* map, int x, int y, Border border,
                      const DecodeRoom& room, Window& window);
  // Zeros outside; rounded to float, into room.blurred. Returns the maximum before rounding.
  double (*blur_map)(const DecodeJob& job, const float* map, const DecodeRoom& room);
};

extern const DecodeLoops decode_scalar;
#if defined(__x86_64__)
extern const DecodeLoops decode_avx2;
extern const DecodeLoops decode_avx512;
#endif

// NaN counts as 0 everywhere. (Static: a copy compiled for AVX-512 must stay in its own file.)
static inline float clean(float value) { return value == value ? value : 0.0f; }

}  // namespace fastpose
