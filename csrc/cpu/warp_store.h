// Loops that the compiler vectorises by itself, compiled once for each instruction set. Everything
// is in an unnamed namespace: a linker must not take the AVX-512 copy for the scalar one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "warp_rows.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace fastpose {
namespace {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t to_float16(float value) {
#if defined(__F16C__)
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00 | (size >> 13 & 0x3ff));  // NaN
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds beyond 65504
  if (size < 0x38800000) {  // subnormal: units of 2^-24; the addition rounds in the last place
    const float units = std::fabs(value) * 0x1p24f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(units)));
  }
  const uint32_t rebiased = size - (112u << 23);
  return static_cast<uint16_t>(sign | (rebiased + 0xfff + (rebiased >> 13 & 1)) >> 13);
#endif
}

// The two kinds of row, so that each gets a loop of its own.
struct BlendedRow {
  const float* __restrict__ above;
  const float* __restrict__ below;
  float a, b;
  float operator()(int i) const { return a * above[i] + b * below[i]; }
};

struct PlainRow {
  const float* __restrict__ values;
  float operator()(int i) const { return values[i]; }
};

void blend(const Blend& row, int n, bool add, float* __restrict__ sum) {
  const BlendedRow values{row.above, row.below, row.a, row.b};
  if (add) {
    for (int i = 0; i < n; ++i) sum[i] += values(i);
  } else {
    for (int i = 0; i < n; ++i) sum[i] = values(i);
  }
}

template <class T, class Row, class Convert>
void store_as(const Row& row, float scale, float shift, int n, void* out, int64_t stride,
              Convert convert) {
  T* __restrict__ to = static_cast<T*>(out);
  if (stride == 1) {
    for (int i = 0; i < n; ++i) to[i] = convert(row(i) * scale + shift);
  } else {
    for (int i = 0; i < n; ++i) to[i * stride] = convert(row(i) * scale + shift);
  }
}

// Dense float16. Compilers do not vectorise the conversion of single numbers, so it is done here
// for eight at a time.
template <class Row>
void store_float16(const Row& row, float scale, float shift, int n, uint16_t* out) {
  int i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    alignas(32) float values[8];
    for (int k = 0; k < 8; ++k) values[k] = row(i + k) * scale + shift;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_load_ps(values), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) out[i] = to_float16(row(i) * scale + shift);
}

template <class Row>
void store_row_as(const Row& row, float scale, float shift, int n, Real type, void* out,
                  int64_t stride) {
  switch (type) {
    case Real::F32:
      return store_as<float>(row, scale, shift, n, out, stride, [](float value) { return value; });
    case Real::Bf16:
      return store_as<uint16_t>(row, scale, shift, n, out, stride, to_bfloat16);
    case Real::F16:
      if (stride == 1) return store_float16(row, scale, shift, n, static_cast<uint16_t*>(out));
      return store_as<uint16_t>(row, scale, shift, n, out, stride, to_float16);
  }
}

void store(const Blend& row, float scale, float shift, int n, Real type, void* out,
           int64_t stride) {
  if (row.below)
    store_row_as(BlendedRow{row.above, row.below, row.a, row.b}, scale, shift, n, type, out,
                 stride);
  else
    store_row_as(PlainRow{row.above}, scale, shift, n, type, out, stride);
}

}  // namespace
}  // namespace fastpose
