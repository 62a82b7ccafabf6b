// Separable windows by byte permutation (AVX-512 VBMI). Every output row of such a window takes the
// same bytes of its source rows, so where they lie is worked out once; then the taps of sixteen
// pixels are one or two vector loads of the source row and one permutation for each channel, where
// the loops of warp_rows.h make a load for each pixel.
#pragma once

#include <cstdint>
#include <vector>

#include "affine.h"
#include "fastpose.h"
#include "warp_rows.h"

namespace fastpose {

// The columns of a window, in blocks of kLanes output pixels. A block consists of `parts` runs of
// neighbours, and all taps of a part lie within `loads` vectors of a source row.
struct Lookup {
  static constexpr int kLanes = 16, kVector = 64;  // output pixels; bytes

  int width, blocks, area;
  int loads, parts;               // (1, 1), (2, 1), (2, 2) or (2, 4)
  std::vector<int32_t> bases;     // [blocks, parts] the first byte of a part in a source row
  std::vector<uint64_t> masks;    // [blocks, parts, loads] the bytes from there that may be read
  std::vector<uint32_t> indices;  // [blocks, area, kLanes] from the base to the two taps of the
                                  // first channel: in the low and in the high half of a word
  std::vector<uint32_t> weights;  // [blocks, area, kLanes] as in warp_rows.h; none for taps outside
  std::vector<float> border;      // [blocks, kLanes] what the taps outside add, in units of
                                  // 1 / kWeightOne; empty where there are none

  // Of an axis-aligned window of `width` columns with area x area samples, for source rows of
  // `source_width` pixels, at least 1. False if the taps of four neighbours lie too far apart.
  bool find(const Affine& affine, int width, int area, int source_width, float border);

 private:
  void find_taps(const Affine& affine, int source_width, float outside);
  bool choose_parts();
  void find_indices(int source_width);

  std::vector<int32_t> offsets_;  // [blocks, area, kLanes] of the left tap in a source row
};

// What an output row is the sum of, in units of 1 / kWeightOne: source rows by their weights,
// `inside`, which is those weights' sum, times the columns' border, and `outside`.
struct RowSum {
  struct Term {
    const uint8_t* row;
    float weight;
  };
  std::vector<Term> terms;  // the first `count` of them
  int count;
  float inside, outside;
  int64_t ahead;  // bytes from a source row to one that a later output row will want
};

// Three planes of an output window, by source channel: row v of one is
// to[c][v * row_bytes ...] = sum * scale[c] + shift[c].
struct Planes {
  char* to[kBytes];
  int64_t row_bytes;
  float scale[kBytes], shift[kBytes];
};

using PermuteRow = void(const Lookup& columns, const RowSum& sum, const Planes& planes, int v);

// The one for a window and a type of the planes.
using ChoosePermute = PermuteRow* (*)(const Lookup& columns, Real type);

#if defined(__x86_64__)
ChoosePermute permute_avx512vbmi();
#endif

}  // namespace fastpose
