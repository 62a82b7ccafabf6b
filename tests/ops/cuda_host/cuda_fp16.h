// float16 by its bits, rounded to nearest even as the GPU does.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(float(fraction), -24);
  return sign * std::ldexp(float(fraction + 1024), exponent - 25);
}

inline __half __float2half_rn(float value) {
  const auto sign = static_cast<uint16_t>(__float_as_uint(value) >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (!(size < 65520.0f)) return {static_cast<uint16_t>(sign | (size != size ? 0x7e00 : 0x7c00))};
  if (size == 0) return {sign};
  int exponent;
  std::frexp(size, &exponent);  // size = f * 2^exponent, f from 1/2
  const int unit = std::max(exponent - 11, -24);
  // a carry into the next power of two is a carry into the exponent's bits
  const auto count = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, -unit)));
  const int above = unit == -24 ? 0 : (unit + 24) << 10;
  return {static_cast<uint16_t>(sign | (count + above))};
}
