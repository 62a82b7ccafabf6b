// The kernels that cut windows out of frames and maps, and their gradient; warp.cu launches them.
//
// Nothing here needs float64, of which many GPUs have little: a position is a whole number and a
// rest. Threads share no memory, and what they pass each other they do not compute with, so that
// one after the other can be run on any machine.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "affine.h"

namespace fastpose {
namespace cuda {

constexpr int kLanes = 32;
constexpr int kWarps = 4;  // of a block that cuts frames, each with a tile of its own
constexpr int kMaxRows = 32;
constexpr int kBusyWarps = 4096;  // what a large GPU takes at a time
constexpr int kMapThreads = 128;
constexpr int kMapBlocks = 10;  // on a processor at a time, which leaves 48 registers
constexpr int64_t kMaxGridZ = 65535;
constexpr int kMaxArea = 16;

// What is cut, as in csrc/fastpose.h; a source that there is not gives a window of border.
struct Windows {
  const float* affines;
  const int32_t* source;
  const int32_t* areas;
  int sources;
  int64_t count;
  int height, width, area;
  float border;

  __device__ int source_of(int64_t window) const { return source ? source[window] : 0; }
  __device__ int area_of(int64_t window) const {
    return areas ? min(max(areas[window], 1), kMaxArea) : area;
  }
  __device__ bool finite(int64_t window) const {
    float sum = 0;  // of zeros, or NaN
#pragma unroll
    for (int i = 0; i < 6; ++i) sum += affines[6 * window + i] - affines[6 * window + i];
    return sum == 0;
  }
};

// 1 / samples; the division that is exact in every case would call a function.
__device__ inline float part_of(int samples) { return __fdividef(1.0f, float(samples)); }

// --- positions ---------------------------------------------------------------------------------

// A position on one axis: rest is small, so that float32 tells positions 1e-6 px apart wherever
// they lie.
struct Place {
  int whole;
  float rest;
};

constexpr float kFar = 1 << 28;  // pixels: farther out, only that it is far is kept

// Adds a * n, exactly but for the rounding of the rest.
__device__ inline void add_product(float a, float n, Place* place) {
  const float whole = fminf(fmaxf(floorf(a * n), -kFar), kFar);
  place->whole += static_cast<int>(whole);
  place->rest += fmaf(a, n, -whole);
}

// One row of an affine: output pixel (u, v) -> one coordinate of the source.
struct Row {
  float u, v, one;

  __device__ static Row load(const float* m) { return {m[0], m[1], m[2]}; }
  __device__ Place at(int column, int row) const {
    Place place{0, 0};
    add_product(one, 1, &place);
    add_product(u, static_cast<float>(column), &place);
    add_product(v, static_cast<float>(row), &place);
    return place;
  }
  // How much farther a sample lies than its pixel's centre.
  __device__ float inner(float column, float row) const { return fmaf(u, column, v * row); }
};

// As find_between of affine.h, for a place moved by `rest`.
__device__ inline bool find_between(Place place, float rest, int size, Between* between) {
  rest += place.rest;
  if (!(fabsf(rest) < 4 * kFar)) return false;
  const float low = floorf(rest);
  *between = {place.whole + static_cast<int>(low), rest - low};
  // exactly on -1, both taps are outside too, but the one at 0 weighs nothing
  return between->low >= -1 && between->low < size;
}

// Where sample i of `area` lies in an output pixel, as subpixel() of affine.h; part is 1 / area.
__device__ inline float inner_at(int i, float part) { return fmaf(i + 0.5f, part, -0.5f); }

// For a finite affine, calls tap(column, row, weight) for every tap of an output pixel inside a
// source of that size, weights adding up to area * area; returns the weight of those outside. A tap
// of weight zero is left out, so that it cannot spread an infinity or NaN. kCorners are worked on
// at a time.
template <int kCorners, class Tap>
__device__ inline float for_taps(const float* affine, int u, int v, int height, int width, int area,
                                 const Tap& tap) {
  const Row x_axis = Row::load(affine), y_axis = Row::load(affine + 3);
  const Place x = x_axis.at(u, v), y = y_axis.at(u, v);
  const float part = part_of(area);
  float outside = 0;
#pragma unroll 1
  for (int j = 0; j < area; ++j) {
#pragma unroll 1
    for (int k = 0; k < area; ++k) {
      const float du = inner_at(k, part), dv = inner_at(j, part);
      Between bx, by;
      if (!find_between(x, x_axis.inner(du, dv), width, &bx) ||
          !find_between(y, y_axis.inner(du, dv), height, &by)) {
        outside += 1;
        continue;
      }
#pragma unroll kCorners
      for (int corner = 0; corner < 4; ++corner) {
        const int column = bx.low + (corner & 1), row = by.low + (corner >> 1);
        const float weight = (corner & 1 ? bx.fraction : 1 - bx.fraction) *
                             (corner >> 1 ? by.fraction : 1 - by.fraction);
        if (weight == 0) continue;
        if (column < 0 || column >= width || row < 0 || row >= height)
          outside += weight;
        else
          tap(column, row, weight);
      }
    }
  }
  return outside;
}

// --- types -------------------------------------------------------------------------------------

__device__ inline float as_float(float value) { return value; }
__device__ inline float as_float(__half value) { return __half2float(value); }
__device__ inline float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T as_real(float value);
template <>
__device__ inline float as_real<float>(float value) {
  return value;
}
template <>
__device__ inline __half as_real<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 as_real<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// --- frames ------------------------------------------------------------------------------------

// Frames of one size or, with a table, rows of (address, row stride, height, width).
struct Frames {
  const int64_t* table;
  const uint8_t* data;
  int64_t frame_stride, row_stride;  // bytes
  int height, width;
};

struct FrameOutput {
  char* data;
  float scale[3], shift[3];                   // by source channel, for the mean of all samples
  float one_scale[3], one_shift[3];           // for the sum of a single one, see Format::start
  float matrix[9];                            // of Nv12, for colours from 0 to 1
  int64_t window_step, row_step, channel[3];  // bytes; `channel` by source channel
  int column_step;
};

struct Frame {
  const uint8_t* data;
  int64_t stride;
  int height, width;
};

// The frame of a window, or one of height 0.
__device__ inline Frame frame_of(const Frames& frames, const Windows& windows, int64_t window) {
  const int source = windows.source_of(window);
  if (source < 0 || source >= windows.sources) return {};
  if (!frames.table)
    return {frames.data + source * frames.frame_stride, frames.row_stride, frames.height,
            frames.width};
  const int64_t* row = frames.table + 4 * int64_t(source);
  if (row[2] < 1 || row[3] < 1) return {};
  return {reinterpret_cast<const uint8_t*>(row[0]), row[1], static_cast<int>(row[2]),
          static_cast<int>(row[3])};
}

// Within a tile that lies inside its frame, positions count from a pixel `left`, `top` of it, are
// not negative, and with kBias added have 8 bits of pixel above 15 bits of fraction.
constexpr float kBias = 256;
constexpr int kFractionBits = 15;
constexpr uint32_t kOne = 1u << kFractionBits;
constexpr uint32_t kFractionMask = kOne - 1;
constexpr uint32_t kBiasBits = 0x43800000u >> kFractionBits;  // of 256.0f
constexpr float kMaxSpan = 250;
constexpr float kSlack = 1.0f / 64;            // px that rounding may move a tile's corner by
constexpr float kExactWhole = 1 << 16;         // up to here float32 is finer than that
constexpr int64_t kMaxInsideStride = 1 << 22;  // kMaxSpan rows of it fit 32 bits

// Bilinear weights of a tap pair above and of the pair below, as 16-bit integers whose sum is kOne.
struct PairWeights {
  uint32_t above, below;  // left | right << 16
};

__device__ inline PairWeights pair_weights(uint32_t x, uint32_t y) {
  const uint32_t a = x & kFractionMask, b = y & kFractionMask;
  const uint32_t both = (a * b + kOne / 2) >> kFractionBits;
  // (b - both) | both << 16, and (kOne - a - b + both) | (a - both) << 16
  const uint32_t below = both * 0xffffu + b;
  return {a * 0xffffu + kOne - below, below};
}

// Interleaved colours, [height, width, 3].
struct Interleaved {
  // A pair of taps is read as three aligned words: so far right of the frame's left edge and left
  // of its right edge they stay within the row.
  static constexpr int kLeft = 1, kRight = 3;
  // On a processor at a time: 12 leave 40 registers, with which code for others would spill.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1000)
  static constexpr int kBlocks = 10;
#else
  static constexpr int kBlocks = 12;
#endif
  static constexpr int kRowsAtOnce = 2;        // loads of one wait behind those of the other
  static constexpr float kUnit = 1.0f / kOne;  // of a sum

  struct Sum {
    uint32_t c0, c1, c2;
  };
  __device__ static Sum zero() { return {0, 0, 0}; }
  __device__ static Pixel value(const Sum& sum) {
    return {float(sum.c0), float(sum.c1), float(sum.c2)};
  }

  // Sums of one sample begin at 2^23 in the bits of a float32, so that they are read as they are.
  static constexpr uint32_t kStart = 0x4b000000u;
  static constexpr float kStartValue = 8388608.0f;
  __device__ static Sum start() { return {kStart, kStart, kStart}; }
  __device__ static Pixel started_value(const Sum& sum) {
    return {__uint_as_float(sum.c0), __uint_as_float(sum.c1), __uint_as_float(sum.c2)};
  }

  __device__ static bool holds(const Frame& frame) { return frame.height > 0; }

  __device__ static Pixel load(const Frame& frame, int x, int y, const float*) {
    const uint8_t* pixel = frame.data + y * frame.stride + 3 * x;
    return {float(pixel[0]), float(pixel[1]), float(pixel[2])};
  }

  // The taps of a tile inside the frame.
  struct Inside {
    const uint8_t* origin;  // at an address divisible by 4
    uint32_t stride, start;

    __device__ Inside(const Frame& frame, int left, int top, const float*) {
      const uint8_t* first = frame.data + top * frame.stride + 3 * int64_t(left);
      const auto beyond = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(first) & 3);
      origin = first - beyond;
      stride = static_cast<uint32_t>(frame.stride);
      start = beyond - kBiasBits * (stride + 3);
    }

    __device__ void add_pairs(uint32_t at, uint32_t weights, Sum* sum) const {
      const auto* words = reinterpret_cast<const uint32_t*>(origin + (at & ~3u));
      const uint32_t word0 = __ldg(words), word1 = __ldg(words + 1), word2 = __ldg(words + 2);
      const uint32_t b0g0r0b1 = __funnelshift_r(word0, word1, 8 * at);
      const uint32_t g1r1 = __funnelshift_r(word1, word2, 8 * at);
      const uint32_t b0b1g0g1 = __byte_perm(b0g0r0b1, g1r1, 0x4130);
      const uint32_t r0r1 = __byte_perm(b0g0r0b1, g1r1, 0x5252);
      sum->c0 = __dp2a_lo(weights, b0b1g0g1, sum->c0);
      sum->c1 = __dp2a_hi(weights, b0b1g0g1, sum->c1);
      sum->c2 = __dp2a_lo(weights, r0r1, sum->c2);
    }

    __device__ void add(float x, float y, Sum* sum) const {
      const uint32_t column = __float_as_uint(x + kBias), row = __float_as_uint(y + kBias);
      const PairWeights weights = pair_weights(column, row);
      const uint32_t at = (row >> kFractionBits) * stride + (column >> kFractionBits) * 3 + start;
      add_pairs(at, weights.above, sum);
      add_pairs(at + stride, weights.below, sum);
    }
  };
};

// Luma rows, then rows of interleaved chroma at half the resolution; every pixel takes the chroma
// of its own 2x2 cell. `matrix` is [3, 3]: rows B, G, R, columns Y - 16, U - 128, V - 128.
struct Nv12 {
  static constexpr int kLeft = 0, kRight = 1;
  static constexpr int kRowsAtOnce = 1;
  static constexpr int kBlocks = 10;  // 48 registers
  static constexpr float kUnit = 1;

  using Sum = Pixel;
  __device__ static Sum zero() { return {0, 0, 0}; }
  __device__ static Pixel value(const Sum& sum) { return sum; }
  static constexpr float kStartValue = 0;
  __device__ static Sum start() { return zero(); }
  __device__ static Pixel started_value(const Sum& sum) { return sum; }

  __device__ static bool holds(const Frame& frame) {
    return frame.height > 0 && ((frame.height | frame.width) & 1) == 0;
  }

  __device__ static Pixel load(const Frame& frame, int x, int y, const float* matrix) {
    const uint8_t* chroma = frame.data + (frame.height + y / 2) * frame.stride + x / 2 * 2;
    const float luma = frame.data[y * frame.stride + x] - 16.0f;
    const float u = chroma[0] - 128.0f, v = chroma[1] - 128.0f;
    const auto channel = [&](const float* row) {
      return 255.0f * __saturatef(fmaf(row[0], luma, fmaf(row[1], u, row[2] * v)));
    };
    return {channel(matrix), channel(matrix + 3), channel(matrix + 6)};
  }

  struct Inside {
    Frame frame;
    int left, top;
    const float* matrix;

    __device__ Inside(const Frame& frame, int left, int top, const float* matrix)
        : frame(frame), left(left), top(top), matrix(matrix) {}

    __device__ void add(float x, float y, Sum* sum) const {
      const float x0 = floorf(x), y0 = floorf(y);
      const int column = left + static_cast<int>(x0), row = top + static_cast<int>(y0);
      const auto along_x = [&](int at) {
        return lerp(load(frame, column, at, matrix), load(frame, column + 1, at, matrix), x - x0);
      };
      const Pixel value = lerp(along_x(row), along_x(row + 1), y - y0);
      *sum = {sum->c0 + value.c0, sum->c1 + value.c1, sum->c2 + value.c2};
    }
  };
};

// Where a tile's positions begin and end on one axis, in pixels from place.whole.
struct Extent {
  float low, high;

  __device__ Extent(const Place& place, const Row& axis, int columns, int rows, float inner) {
    const float across = axis.u * (columns - 1), down = axis.v * (rows - 1);
    const float beside = inner * (fabsf(axis.u) + fabsf(axis.v)) + kSlack;
    low = place.rest + fminf(across, 0) + fminf(down, 0) - beside;
    high = place.rest + fmaxf(across, 0) + fmaxf(down, 0) + beside;
  }
  // No tap of any sample is among the `size` pixels.
  __device__ bool outside(const Place& place, int size) const {
    const auto whole = static_cast<float>(place.whole);
    return fabsf(whole) < kExactWhole && (whole + high < -1 || whole + low > size);
  }
  // All taps of all samples are, with so many pixels to spare on either side.
  __device__ bool inside(const Place& place, int size, int before, int after) const {
    const auto whole = static_cast<float>(place.whole);
    return fabsf(whole) < kExactWhole && high - low < kMaxSpan && whole + low >= before &&
           whole + high < size - after;
  }
};

// 16-bit values of two channels, the first in the low half.
template <class T>
__device__ inline uint32_t packed(float low, float high) {
  const T values[2] = {as_real<T>(low), as_real<T>(high)};
  uint32_t word;
  memcpy(&word, values, sizeof(word));
  return word;
}

// Where the values of a column of output pixels go. With kPairs, see stores_pairs, two lanes have
// the three words of two pixels: the left one stores the first and the second, the right one the
// third.
template <class T, bool kPairs>
struct Column {
  char* to;
  unsigned lanes;  // of the warp, that take part

  __device__ Column(const FrameOutput& out, int64_t window, int u, int v, int across)
      : to(out.data + window * out.window_step + v * out.row_step + u * out.column_step),
        lanes(0xffffffffu >> (kLanes - across)) {
    if (kPairs && is_right()) to += 2;
  }
  // Into the next row.
  __device__ void put(const FrameOutput& out, const Pixel& value) {
    if (kPairs) {
      put_paired(out, value);
    } else {
      *reinterpret_cast<T*>(to + out.channel[0]) = as_real<T>(value.c0);
      *reinterpret_cast<T*>(to + out.channel[1]) = as_real<T>(value.c1);
      *reinterpret_cast<T*>(to + out.channel[2]) = as_real<T>(value.c2);
    }
    to += out.row_step;
  }

 private:
  __device__ static bool is_right() { return threadIdx.x & 1; }
  __device__ void put_paired(const FrameOutput& out, const Pixel& value) const {
    const bool swap = out.channel[0] != 0;
    const uint32_t two = packed<T>(swap ? value.c2 : value.c0, value.c1);
    const uint32_t third = packed<T>(swap ? value.c0 : value.c2, 0);
    const uint32_t other = __shfl_xor_sync(lanes, two, 1);
    auto* words = reinterpret_cast<uint32_t*>(to);
    words[0] = is_right() ? two >> 16 | third << 16 : two;
    if (!is_right()) words[1] = third | other << 16;
  }
};

__device__ inline Pixel times(const Pixel& value, float factor) {
  return {value.c0 * factor, value.c1 * factor, value.c2 * factor};
}
__device__ inline Pixel normalise(const Pixel& value, const float* scale, const float* shift) {
  return {fmaf(value.c0, scale[0], shift[0]), fmaf(value.c1, scale[1], shift[1]),
          fmaf(value.c2, scale[2], shift[2])};
}

// Dense windows [N, 3, h, w] or [N, h, w, 3] of T; scale and shift by output channel.
template <class Format, class T>
FrameOutput frame_output(void* data, const Windows& windows, const float* scale, const float* shift,
                         const float* matrix, bool channels_last, bool swap_rb) {
  const int64_t plane = int64_t{windows.height} * windows.width;
  const int size = sizeof(T);
  FrameOutput out{};
  out.data = static_cast<char*>(data);
  out.window_step = 3 * plane * size;
  out.column_step = (channels_last ? 3 : 1) * size;
  out.row_step = int64_t{windows.width} * out.column_step;
  for (int c = 0; c < 3; ++c) {
    const int to = swap_rb ? 2 - c : c;
    out.channel[c] = to * (channels_last ? 1 : plane) * size;
    out.scale[c] = scale[to];
    out.shift[c] = shift[to];
    const double one = double{scale[to]} * Format::kUnit;
    out.one_scale[c] = static_cast<float>(one);
    out.one_shift[c] = static_cast<float>(shift[to] - one * Format::kStartValue);
  }
  for (int i = 0; matrix && i < 9; ++i) out.matrix[i] = matrix[i] / 255;
  return out;
}

// Two pixels are three aligned words.
template <class T>
bool stores_pairs(const Windows& windows, const void* data, bool channels_last) {
  return sizeof(T) == 2 && channels_last && windows.width % 2 == 0 &&
         reinterpret_cast<uintptr_t>(data) % 4 == 0;
}

// Output rows that one warp cuts: few where there are few windows, so that no processor idles.
inline int rows_of_tile(const Windows& windows) {
  const int64_t columns = (windows.width + kLanes - 1) / kLanes;
  const int64_t most = windows.count * columns * windows.height / kBusyWarps;
  int rows = 1;
  while (rows < kMaxRows && 2 * rows <= most) rows *= 2;
  return rows;
}

inline dim3 frames_grid(const Windows& windows, int rows) {
  const int tall = rows * kWarps;
  return dim3((windows.width + kLanes - 1) / kLanes, (windows.height + tall - 1) / tall);
}

// What one lane cuts: a column of `rows` output pixels below (u, v), `lane` right of its tile's
// own.
struct Strip {
  Row x_axis, y_axis;
  Place x, y;  // of the tile's first pixel
  int lane, rows, area;
};

// All taps of the tile lie inside the frame, `left` and `top` counting from its places.
template <class Format, class T, bool kPairs>
__device__ inline void cut_inside(const Strip& strip, const Frame& frame, float left, float top,
                                  const FrameOutput& out, Column<T, kPairs> column) {
  const typename Format::Inside taps(frame, strip.x.whole + static_cast<int>(left),
                                     strip.y.whole + static_cast<int>(top), out.matrix);
  const auto lane = static_cast<float>(strip.lane);
  float x = fmaf(strip.x_axis.u, lane, strip.x.rest - left);
  float y = fmaf(strip.y_axis.u, lane, strip.y.rest - top);
  const auto cut_singly = [&](const auto& x_at) {
    float row = 0;
#pragma unroll Format::kRowsAtOnce
    for (int i = 0; i < strip.rows; ++i, ++row) {
      typename Format::Sum sum = Format::start();
      taps.add(x_at(row), fmaf(strip.y_axis.v, row, y), &sum);
      column.put(out, normalise(Format::started_value(sum), out.one_scale, out.one_shift));
    }
  };
  if (strip.area == 1) {
    const float down = strip.x_axis.v;
    // in an upright window all that depends on x is the same for all rows
    if (down == 0)
      cut_singly([&](float) { return x; });
    else
      cut_singly([&](float row) { return fmaf(down, row, x); });
    return;
  }
  float row = 0;
  const float part = part_of(strip.area);
#pragma unroll 1
  for (int i = 0; i < strip.rows; ++i, ++row) {
    typename Format::Sum sum = Format::zero();
#pragma unroll 1
    for (int j = 0; j < strip.area; ++j) {
      const float dv = row + inner_at(j, part);
#pragma unroll 1
      for (int k = 0; k < strip.area; ++k) {
        const float du = inner_at(k, part);
        taps.add(x + strip.x_axis.inner(du, dv), y + strip.y_axis.inner(du, dv), &sum);
      }
    }
    column.put(out, normalise(times(Format::value(sum), Format::kUnit * part * part), out.scale,
                              out.shift));
  }
}

// Any tile: each tap is looked at, and positions lie wherever they like. A rare case, kept small in
// registers, which all others would have less of.
template <class Format, class T, bool kPairs>
__device__ inline void cut_across(const float* affine, int u, int v, int rows, int area,
                                  const Frame& frame, float border, const FrameOutput& out,
                                  Column<T, kPairs> column) {
#pragma unroll 1
  for (; rows > 0; --rows, ++v) {
    Pixel sum{0, 0, 0};
    const float outside =
        for_taps<1>(affine, u, v, frame.height, frame.width, area, [&](int x, int y, float weight) {
          const Pixel tap = Format::load(frame, x, y, out.matrix);
          sum = {fmaf(weight, tap.c0, sum.c0), fmaf(weight, tap.c1, sum.c1),
                 fmaf(weight, tap.c2, sum.c2)};
        });
    const float beyond = outside == 0 ? 0 : outside * border, part = part_of(area);
    sum = {sum.c0 + beyond, sum.c1 + beyond, sum.c2 + beyond};
    column.put(out, normalise(times(sum, part * part), out.scale, out.shift));
  }
}

// Calls launch(grid, first) for as many windows at a time as a grid can have along z.
template <class Launch>
void for_grids(dim3 grid, int64_t windows, const Launch& launch) {
  for (int64_t first = 0; first < windows; first += kMaxGridZ) {
    const int64_t left = windows - first;
    grid.z = static_cast<unsigned>(left < kMaxGridZ ? left : kMaxGridZ);
    launch(grid, first);
  }
}

// One warp for each tile of kLanes x `rows` output pixels, one lane for each of its columns: lanes
// side by side read and write side by side.
template <class Format, class T, bool kPairs>
__global__ void __launch_bounds__(kLanes* kWarps, Format::kBlocks)
    warp_frames(const Frames frames, const Windows windows, const FrameOutput out, const int rows,
                const int64_t first) {
  const int u = blockIdx.x * kLanes, v = (blockIdx.y * kWarps + threadIdx.y) * rows;
  const int lane = threadIdx.x, across = min(kLanes, windows.width - u);
  if (v >= windows.height || lane >= across) return;

  const int64_t window = first + blockIdx.z;
  const float* affine = windows.affines + 6 * window;
  Strip strip;
  strip.x_axis = Row::load(affine);
  strip.y_axis = Row::load(affine + 3);
  strip.x = strip.x_axis.at(u, v);
  strip.y = strip.y_axis.at(u, v);
  strip.lane = lane;
  strip.rows = min(rows, windows.height - v);
  strip.area = windows.area_of(window);

  const Frame frame = frame_of(frames, windows, window);
  const float inner = 0.5f - 0.5f * part_of(strip.area);
  const Extent wide(strip.x, strip.x_axis, across, strip.rows, inner);
  const Extent tall(strip.y, strip.y_axis, across, strip.rows, inner);
  Column<T, kPairs> column(out, window, u + lane, v, across);
  if (!windows.finite(window) || !Format::holds(frame) || wide.outside(strip.x, frame.width) ||
      tall.outside(strip.y, frame.height)) {
    const Pixel border{windows.border, windows.border, windows.border};
    const Pixel value = normalise(border, out.scale, out.shift);
#pragma unroll 1
    for (int i = 0; i < strip.rows; ++i) column.put(out, value);
  } else if (frame.stride >= 0 && frame.stride < kMaxInsideStride &&
             wide.inside(strip.x, frame.width, Format::kLeft, Format::kRight) &&
             tall.inside(strip.y, frame.height, 0, 1)) {
    cut_inside<Format>(strip, frame, floorf(wide.low), floorf(tall.low), out, column);
  } else {
    cut_across<Format>(affine, u + lane, v, strip.rows, strip.area, frame, windows.border, out,
                       column);
  }
}

// --- maps --------------------------------------------------------------------------------------

// [T, C, height, width] in any order of memory; strides in elements.
template <class T>
struct Maps {
  T* data;
  int64_t map_stride, channel_stride, row_stride, column_stride;
  int channels, height, width;

  __device__ T* cell(int map, int channel, int row, int column) const {
    return data + map * map_stride + channel * channel_stride + row * row_stride +
           column * column_stride;
  }
};

struct MapOutput {
  void* data;
  const float* scale;  // [channels] for the mean of all samples, or null: no normalisation
  const float* shift;
  bool channels_last, swap_rb;
};

// An output pixel and the channels that one thread has of it.
struct Share {
  int u, v, channel;

  // `index` counts pixels of a window and groups of channels, whichever lie side by side first.
  __device__ Share(unsigned index, const Windows& windows, unsigned groups, int group,
                   bool channels_first) {
    const unsigned plane = unsigned(windows.height) * windows.width;
    const unsigned pixel = channels_first ? index / groups : index % plane;
    channel = static_cast<int>(channels_first ? index % groups : index / plane) * group;
    u = static_cast<int>(pixel % windows.width);
    v = static_cast<int>(pixel / windows.width);
  }
};

inline int64_t shares(const Windows& windows, int channels, int group) {
  return int64_t(windows.height) * windows.width * ((channels + group - 1) / group);
}

inline dim3 maps_grid(const Windows& windows, int channels, int group) {
  const int64_t blocks = (shares(windows, channels, group) + kMapThreads - 1) / kMapThreads;
  return dim3(static_cast<unsigned>(blocks));
}

// Channels that a thread has: as many as 16 bytes hold, where they lie side by side.
constexpr int kStridedGroup = 4;
template <class T, bool kVector>
constexpr int kGroupOf = kVector ? 16 / static_cast<int>(sizeof(T)) : kStridedGroup;

// Channels lie side by side in groups of 16 bytes, at addresses divisible by that.
template <class T>
bool reads_vectors(const Maps<const T>& maps) {
  const int64_t group = kGroupOf<T, true>;
  return maps.channel_stride == 1 && maps.channels % group == 0 && maps.map_stride % group == 0 &&
         maps.row_stride % group == 0 && maps.column_stride % group == 0 &&
         reinterpret_cast<uintptr_t>(maps.data) % 16 == 0;
}

// Stores a group; kVector: in pieces of 8 bytes, if `to` is divisible by that.
template <bool kVector, class T, int kGroup>
__device__ inline void store_side_by_side(const T (&values)[kGroup], int count, T* to) {
  constexpr int kPieces = kGroup * int(sizeof(T)) / 8;
  if (kVector && (reinterpret_cast<uintptr_t>(to) & 7) == 0) {
    uint2 pieces[kPieces];
    memcpy(pieces, values, sizeof(pieces));
#pragma unroll
    for (int i = 0; i < kPieces; ++i) reinterpret_cast<uint2*>(to)[i] = pieces[i];
    return;
  }
#pragma unroll
  for (int c = 0; c < kGroup; ++c)
    if (c < count) to[c] = values[c];
}

// One thread for each output pixel and group of channels. With kVector, channels lie side by side,
// a group at an address divisible by 16, there are only whole groups, and no swap.
template <class From, class To, bool kVector>
__global__ void __launch_bounds__(kMapThreads, kMapBlocks)
    warp_maps(const Maps<const From> maps, const Windows windows, const MapOutput out,
              const int64_t first) {
  constexpr int kGroup = kGroupOf<From, kVector>;
  const unsigned groups = (maps.channels + kGroup - 1) / kGroup;
  const unsigned index = blockIdx.x * kMapThreads + threadIdx.x;
  if (index >= groups * unsigned(windows.height) * windows.width) return;
  const Share share(index, windows, groups, kGroup, out.channels_last);
  const int count = min(kGroup, maps.channels - share.channel);

  const int64_t window = first + blockIdx.z;
  const int source = windows.source_of(window), area = windows.area_of(window);
  const bool known = source >= 0 && source < windows.sources && windows.finite(window);
  float sum[kGroup];
#pragma unroll
  for (int c = 0; c < kGroup; ++c) sum[c] = 0;
  float outside = static_cast<float>(area * area);
  if (known)
    outside = for_taps<4>(
        windows.affines + 6 * window, share.u, share.v, maps.height, maps.width, area,
        [&](int column, int row, float weight) {
          if (kVector) {
            From values[kGroup];
            const uint4 vector = __ldg(
                reinterpret_cast<const uint4*>(maps.cell(source, share.channel, row, column)));
            memcpy(values, &vector, sizeof(vector));
#pragma unroll
            for (int c = 0; c < kGroup; ++c) sum[c] = fmaf(weight, as_float(values[c]), sum[c]);
          } else {
            const int from = out.swap_rb ? maps.channels - 1 - share.channel : share.channel;
            const int64_t step = out.swap_rb ? -maps.channel_stride : maps.channel_stride;
            const From* cell = maps.cell(source, from, row, column);
#pragma unroll
            for (int c = 0; c < kGroup; ++c)
              if (c < count) sum[c] = fmaf(weight, as_float(cell[c * step]), sum[c]);
          }
        });
  const float border = outside == 0 ? 0 : outside * windows.border;
  const float part = part_of(area * area);
  To results[kGroup];
#pragma unroll
  for (int c = 0; c < kGroup; ++c) {
    const float mean = (sum[c] + border) * part;
    const int at = share.channel + c;
    results[c] =
        as_real<To>(out.scale && c < count ? fmaf(mean, out.scale[at], out.shift[at]) : mean);
  }
  const int64_t plane = int64_t(windows.height) * windows.width;
  const int64_t pixel = int64_t(share.v) * windows.width + share.u;
  To* to = static_cast<To*>(out.data) + window * plane * maps.channels;
  if (out.channels_last) {
    to += pixel * maps.channels + share.channel;
    store_side_by_side<kVector>(results, count, to);
  } else {
    to += share.channel * plane + pixel;
#pragma unroll
    for (int c = 0; c < kGroup; ++c)
      if (c < count) to[c * plane] = results[c];
  }
}

// --- the gradient of maps ----------------------------------------------------------------------

// One thread for each output pixel and group of channels; every tap gets its share of what arrived
// there. `total` begins as zeros. The order of additions is the device's: sums differ in rounding
// from run to run.
template <class From>
__global__ void __launch_bounds__(kMapThreads, kMapBlocks)
    scatter_maps(const Maps<const From> grad, const Windows windows, const Maps<float> total,
                 const float* scale, const bool swap_rb, const int64_t first) {
  constexpr int kGroup = kStridedGroup;
  const unsigned groups = (total.channels + kGroup - 1) / kGroup;
  const unsigned index = blockIdx.x * kMapThreads + threadIdx.x;
  if (index >= groups * unsigned(windows.height) * windows.width) return;
  const Share share(index, windows, groups, kGroup, total.channel_stride == 1);
  const int count = min(kGroup, total.channels - share.channel);
  const int from = swap_rb ? total.channels - 1 - share.channel : share.channel;
  const int64_t step = swap_rb ? -total.channel_stride : total.channel_stride;

  const int64_t window = first + blockIdx.z;
  const int source = windows.source_of(window), area = windows.area_of(window);
  if (source < 0 || source >= windows.sources || !windows.finite(window)) return;
  const From* cell = grad.data + window * grad.map_stride + share.channel * grad.channel_stride +
                     share.v * grad.row_stride + share.u * grad.column_stride;
  const float part = part_of(area * area);
  float given[kGroup];
#pragma unroll
  for (int c = 0; c < kGroup; ++c) {
    given[c] = 0;
    if (c < count)
      given[c] = as_float(cell[c * grad.channel_stride]) * part *
                 (scale ? scale[share.channel + c] : 1.0f);
  }
  for_taps<4>(windows.affines + 6 * window, share.u, share.v, total.height, total.width, area,
              [&](int column, int row, float weight) {
                float* to = total.cell(source, from, row, column);
#pragma unroll
                for (int c = 0; c < kGroup; ++c)
                  if (c < count) atomicAdd(to + c * step, weight * given[c]);
              });
}

}  // namespace cuda
}  // namespace fastpose
