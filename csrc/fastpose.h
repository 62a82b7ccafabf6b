// The kernels: pointers, sizes and strides, no framework. Arguments are checked by the public
// function in fastpose/ops; a kernel trusts them.
#pragma once

#include <cstdint>
#include <string>

#include "isa.h"

namespace fastpose {

// Element types of a result.
enum class Real { F32, F16, Bf16 };

// Interleaved frames [T, height, width, 3]; strides in bytes, of any sign.
struct ByteFrames {
  const uint8_t* data;
  int64_t frame_stride, row_stride;
  int height, width;
};

// Feature maps [T, C, height, width]; strides in elements, of any sign, 1 along x.
struct FloatMaps {
  const float* data;
  int64_t map_stride, channel_stride, row_stride;
  int height, width;
};

// What is cut: for every window an affine (output pixel -> source pixel) and the index of its
// source.
struct Windows {
  const float* affines;   // [count, 2, 3]
  const int32_t* source;  // [count], or null: all from source 0
  int64_t count;
  int height, width;  // of the output
  int area;           // area x area samples for each output pixel
  float border;       // value of a tap outside the source, in source units
};

// [count, channels, height, width], or [count, height, width, channels] with `channels_last`.
// Output channel c is (source channel * scale[c] + shift[c]); `swap_rb` takes the channels in
// reverse.
struct WarpOutput {
  void* data;
  const float* scale;  // [channels]
  const float* shift;  // [channels]
  int channels;
  Real type;
  bool channels_last, swap_rb;
};

void warp_bytes(const ByteFrames& frames, const Windows& windows, const WarpOutput& out, Isa isa);
void warp_maps(const FloatMaps& maps, const Windows& windows, const WarpOutput& out, Isa isa);

}  // namespace fastpose
