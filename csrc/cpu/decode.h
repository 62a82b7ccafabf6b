// What decode.cpp and its vector loops share.
#pragma once

#include <cstdint>

#include "fastpose.h"

namespace fastpose {

struct Peak {
  float value;    // -infinity where every cell is NaN or -infinity
  int64_t index;  // the first cell of that value, in row order
};

// Sums run over blocks of this many neighbours; rows are padded to whole blocks.
constexpr int kLanes = 8;
constexpr int whole_blocks(int cells) { return (cells + kLanes - 1) / kLanes * kLanes; }

// Cells to blur, and the row length of what the blur of such a region reads.
struct Region {
  int left, top, width, height;
};
constexpr int patch_stride(int width, int radius) {
  return whole_blocks(whole_blocks(width) + 2 * radius);
}

// Room for the intermediate values of one map, made once per thread and call.
struct DecodeRoom {
  float* map;       // [h * w]: stages and mirrored maps merged
  float* mirrored;  // [h * w]
  float* blurred;   // [h * w]
  double* patch;    // a region with its surroundings, then the region blurred
  double* columns;  // the region blurred along columns
};

// Blurred cells round a peak: value (dx, dy) at [dy + kReach][dx + kReach].
constexpr int kReach = 2;
constexpr int kSide = 2 * kReach + 1;
using Window = double[kSide][whole_blocks(kSide)];

enum class Border { Zero, Mirror };

constexpr double kSoftSharpness = 10.0;

// Sums of weights, and of weights times the distance from the middle.
struct Moments {
  double total, x, y;
};

struct DecodeLoops {
  // The stages and the mirrored maps of map `index`: a pointer to the input where there is nothing
  // to merge, else to room.map.
  const float* (*merge)(const DecodeJob& job, int64_t index, const DecodeRoom& room);
  Peak (*find_peak)(const float* map, int64_t cells);
  // Into `out`, [region.height][whole_blocks(region.width)], which may be room.patch.
  void (*blur)(const DecodeJob& job, const float* map, const Region& region, Border border,
               const DecodeRoom& room, double* out);
  // Of the cells within radius + 1 of (x, y), each weighted by exp(kSoftSharpness * (H / H(x, y) -
  // 1)), H being positive there.
  Moments (*weigh_exponentially)(const DecodeJob& job, const float* map, int x, int y,
                                 const DecodeRoom& room);
};

extern const DecodeLoops decode_scalar;
#if defined(__x86_64__)
extern const DecodeLoops decode_avx2;
extern const DecodeLoops decode_avx512;
#endif

const DecodeLoops& decode_loops(Isa isa);

// NaN counts as 0 everywhere. (Static: a copy compiled for AVX-512 must stay in its own file.)
static inline float clean(float value) { return value == value ? value : 0.0f; }

}  // namespace fastpose
