#include <immintrin.h>

#include "warp_lookup.h"

namespace fastpose {
namespace {

// The tables of `Lookup` for one block.
struct Block {
  const int32_t* bases;
  const uint64_t* masks;
  const uint32_t* indices;
  const uint32_t* weights;
};

// The vectors of a block of a source row.
template <int kLoads, int kParts>
struct Bytes {
  __m512i vectors[kParts][kLoads];

  void load(const uint8_t* row, const Block& block, int64_t ahead) {
    for (int part = 0; part < kParts; ++part)
      for (int i = 0; i < kLoads; ++i) {
        const uint8_t* from = row + block.bases[part] + i * Lookup::kVector;
        vectors[part][i] = _mm512_maskz_loadu_epi8(block.masks[part * kLoads + i], from);
        _mm_prefetch(from + ahead, _MM_HINT_T0);  // which cannot fault
      }
  }

  // The two taps of every pixel as a pair of 16-bit words. The high bytes of the words are those of
  // the index, which are zero; a part of the lanes is an index until its own turn.
  __m512i pairs(__m512i index) const {
    constexpr __mmask64 kLowBytes = 0x5555555555555555u;
    if constexpr (kLoads == 1)
      return _mm512_mask_permutexvar_epi8(index, kLowBytes, index, vectors[0][0]);
    constexpr int kBytesOfPart = Lookup::kVector / kParts;
    constexpr __mmask64 kFirst = kLowBytes >> (Lookup::kVector - kBytesOfPart);
    for (int part = 0; part < kParts; ++part)
      index = _mm512_mask2_permutex2var_epi8(
          vectors[part][0], index, kFirst << (part * kBytesOfPart), vectors[part][kLoads - 1]);
    return index;
  }
};

// bfloat16, rounded to nearest even; a NaN stays one.
__m256i to_bfloat16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}

__mmask16 first_lanes(int count) {
  return static_cast<__mmask16>(count >= Lookup::kLanes ? 0xffff : (1 << count) - 1);
}

template <Real kType>
inline void store(void* plane, int u, __mmask16 lanes, __m512 value) {
  if constexpr (kType == Real::F32) {
    _mm512_mask_storeu_ps(static_cast<float*>(plane) + u, lanes, value);
  } else {
    const __m256i half =
        kType == Real::F16 ? _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT) : to_bfloat16(value);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(plane) + u, lanes, half);
  }
}

// sums += kRows source rows by their weights.
template <int kRows, int kArea, int kLoads, int kParts>
inline void add_rows(const Block& block, const RowSum::Term* terms, int area, int64_t ahead,
                     __m512* sums) {
  Bytes<kLoads, kParts> bytes[kRows];
  for (int k = 0; k < kRows; ++k) bytes[k].load(terms[k].row, block, ahead);
  __m512i totals[kRows][kBytes] = {};
  for (int i = 0; i < (kArea ? kArea : area); ++i) {
    __m512i index = _mm512_loadu_si512(block.indices + i * Lookup::kLanes);
    const __m512i weight = _mm512_loadu_si512(block.weights + i * Lookup::kLanes);
    for (int c = 0; c < kBytes; ++c) {
      for (int k = 0; k < kRows; ++k) {
        const __m512i pairs = bytes[k].pairs(index);
        totals[k][c] = kArea == 1 ? _mm512_madd_epi16(pairs, weight)
                                  : _mm512_dpwssd_epi32(totals[k][c], pairs, weight);
      }
      index = _mm512_add_epi16(index, _mm512_set1_epi16(1));
    }
  }
  for (int k = 0; k < kRows; ++k)
    for (int c = 0; c < kBytes; ++c)
      sums[c] = _mm512_fmadd_ps(_mm512_set1_ps(terms[k].weight), _mm512_cvtepi32_ps(totals[k][c]),
                                sums[c]);
}

template <Real kType, int kLoads, int kParts, int kArea>  // kArea 0: known at run time only
void permute_row(const Lookup& columns, const RowSum& sum, const Planes& planes, int v) {
  const RowSum::Term* terms = sum.terms.data();
  const int area = kArea ? kArea : columns.area, width = columns.width, count = sum.count;
  const float* border = columns.border.empty() ? nullptr : columns.border.data();
  const __m512 inside = _mm512_set1_ps(sum.inside), outside = _mm512_set1_ps(sum.outside);
  __m512 scale[kBytes], shift[kBytes];
  char* to[kBytes];
  for (int c = 0; c < kBytes; ++c) {
    scale[c] = _mm512_set1_ps(planes.scale[c]);
    shift[c] = _mm512_set1_ps(planes.shift[c]);
    to[c] = planes.to[c] + v * planes.row_bytes;
  }
  Block block{columns.bases.data(), columns.masks.data(), columns.indices.data(),
              columns.weights.data()};
  for (int u = 0; u < width; u += Lookup::kLanes) {
    __m512 sums[kBytes] = {outside, outside, outside};
    int term = 0;
    for (; term + 2 <= count; term += 2)
      add_rows<2, kArea, kLoads, kParts>(block, terms + term, area, sum.ahead, sums);
    if (term < count)
      add_rows<1, kArea, kLoads, kParts>(block, terms + term, area, sum.ahead, sums);
    if (border)
      for (__m512& channel : sums)
        channel = _mm512_fmadd_ps(inside, _mm512_loadu_ps(border + u), channel);
    const __mmask16 lanes = first_lanes(width - u);
    for (int c = 0; c < kBytes; ++c)
      store<kType>(to[c], u, lanes, _mm512_fmadd_ps(sums[c], scale[c], shift[c]));
    block.bases += kParts;
    block.masks += kParts * kLoads;
    block.indices += area * Lookup::kLanes;
    block.weights += area * Lookup::kLanes;
  }
}

template <Real kType, int kLoads, int kParts>
PermuteRow* by_area(int area) {
  switch (area) {
    case 1:
      return permute_row<kType, kLoads, kParts, 1>;
    case 2:
      return permute_row<kType, kLoads, kParts, 2>;
    default:
      return permute_row<kType, kLoads, kParts, 0>;
  }
}

template <Real kType>
PermuteRow* by_reach(const Lookup& columns) {
  if (columns.loads == 1) return by_area<kType, 1, 1>(columns.area);
  switch (columns.parts) {
    case 1:
      return by_area<kType, 2, 1>(columns.area);
    case 2:
      return by_area<kType, 2, 2>(columns.area);
    default:
      return by_area<kType, 2, 4>(columns.area);
  }
}

PermuteRow* choose(const Lookup& columns, Real type) {
  switch (type) {
    case Real::F32:
      return by_reach<Real::F32>(columns);
    case Real::F16:
      return by_reach<Real::F16>(columns);
    default:
      return by_reach<Real::Bf16>(columns);
  }
}

}  // namespace

ChoosePermute permute_avx512vbmi() { return choose; }

}  // namespace fastpose
