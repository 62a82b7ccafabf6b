// The kernels: pointers, sizes and strides, no framework. Arguments are checked by the public
// function in fastpose/ops; a kernel trusts them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "isa.h"

namespace fastpose {

// Element types of a result.
enum class Real { F32, F16, Bf16 };

// Where one of several frames of different sizes lies; a height or width of 0 stands for no frame.
struct FrameRow {
  int64_t address, row_stride, height, width;
};

// Interleaved frames, [count, height, width, 3] or, with a table, of different sizes; strides in
// bytes, of any sign.
struct ByteFrames {
  const uint8_t* data;
  int64_t frame_stride, row_stride;
  int height, width;
  int64_t count;
  const FrameRow* table;  // [count], or null; with it, nothing above counts
};

// Feature maps [T, C, height, width]; strides in elements, of any sign, 1 along x.
struct FloatMaps {
  const float* data;
  int64_t map_stride, channel_stride, row_stride;
  int height, width;
};

// What is cut: for every window an affine (output pixel -> source pixel) and the index of its
// source. With frames, a source that there is not gives a window of border.
struct Windows {
  const float* affines;   // [count, 2, 3]
  const int32_t* source;  // [count], or null: all from source 0
  const int32_t* areas;   // [count], or null: `area` for all
  int64_t count;
  int height, width;  // of the output
  int area;           // area x area samples for each output pixel
  float border;       // value of a tap outside the source, in source units

  int64_t source_of(int64_t window) const { return source ? source[window] : 0; }
  int area_of(int64_t window) const { return areas ? areas[window] : area; }
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

// `vbmi`: windows that are not turned by the byte permutations that go beyond Isa::Avx512.
void warp_bytes(const ByteFrames& frames, const Windows& windows, const WarpOutput& out, Isa isa,
                bool vbmi);
void warp_maps(const FloatMaps& maps, const Windows& windows, const WarpOutput& out, Isa isa);

enum class DecodeMethod { Argmax, Quarter, Parabola, Taylor, Dark, Udp, Soft, Cpn };

// The method of that name in Python. Throws std::invalid_argument for another name.
DecodeMethod parse_decode_method(const std::string& name);

// Heat-maps [stages, n, k, h, w] to points [n, k, peaks, 2] and scores [n, k, peaks].
struct DecodeJob {
  const void* maps;
  const void* flipped;     // maps of the mirrored input, or null
  const int32_t* partner;  // [k]: the channel of `flipped` that belongs to this one
  Real type;
  int64_t stages, n, k;
  int h, w;
  bool mean;       // of the stages, else their sum
  int flip_shift;  // 0 or 1 cells to the right
  DecodeMethod method;
  const double* taps;  // [2 * radius + 1], the blur
  int radius;
  int peaks;
  double peak_value;
  const double* affines;  // [n, 2, 3], cell -> frame pixel, or null
  float* points;
  float* scores;
};

void decode(const DecodeJob& job, Isa isa);

// Vectors [n, k, count]; strides in elements, of any sign, 1 along the bins.
struct Bins {
  const float* data;
  int64_t window_stride, joint_stride;
  int count;
};

// SimCC vectors to points [n, k, 2] and scores [n, k].
struct SimccJob {
  Bins x, y;
  Bins flipped_x, flipped_y;  // of the mirrored input, or without data
  const int32_t* partner;     // [k]: the joint of the mirrored input that belongs to this one
  int64_t n, k;
  double split;    // bins for each pixel of the input
  int flip_shift;  // bins by which mirrored-back x vectors are shifted left
  double peak_value;
  const double* affines;  // [n, 2, 3], input pixel -> frame pixel, or null
  float* points;
  float* scores;
};

void decode_simcc(const SimccJob& job, Isa isa);

enum class SuppressMethod { Hard, SoftLinear, SoftGaussian };

// The method of that name in Python. Throws std::invalid_argument for another name.
SuppressMethod parse_suppress_method(const std::string& name);

struct Suppression {
  SuppressMethod method;
  double threshold;  // overlap of two that are one, for Hard and SoftLinear
  double sigma;      // for SoftGaussian
  double floor;      // lowest score that is kept
};

// By falling score.
struct Kept {
  std::vector<int64_t> indices;
  std::vector<float> scores;
};

// Boxes [n, 4] (x0, y0, x1, y1), scores [n], classes [n].
Kept suppress_boxes(const double* boxes, const double* scores, const int64_t* classes, int64_t n,
                    const Suppression& rule);

// Poses [n, joints, 2], scores [n], areas [n], sigmas [joints].
Kept suppress_poses(const double* keypoints, const double* scores, const double* areas,
                    const double* sigmas, int64_t n, int64_t joints, const Suppression& rule);

// Scores [n, parts, types, h, w] to points [n, parts, 2], types [n, parts] and totals [n].
struct TreeJob {
  const float* scores;
  int64_t n;
  int parts, types, h, w;
  const int64_t* parents;  // [parts]
  const int64_t* order;    // [parts], each after its parent
  const int64_t* anchors;  // [parts, types, 2] (x, y) cells
  double weight;
  float* points;
  int64_t* out_types;
  double* total;
};

void fit_tree(const TreeJob& job);

}  // namespace fastpose
