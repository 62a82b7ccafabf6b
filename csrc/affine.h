// The arithmetic of a warp: positions and taps as the CPU kernel and its vector twins' edges find
// them, in float64, and what they share with the CUDA kernels, which keep to float32
// (cuda/warp.cuh).
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FASTPOSE_HOST_DEVICE __host__ __device__
#else
#define FASTPOSE_HOST_DEVICE
#endif

namespace fastpose {

// Output pixel (u, v) -> source position. Positions are float64: at x = 4000 a float32 is 2e-4 px
// wide, which is visible in the fourth digit of a sharp edge.
struct Affine {
  double xu, xv, x1, yu, yv, y1;

  static Affine load(const float* m) {  // [2, 3], row-major
    return {m[0], m[1], m[2], m[3], m[4], m[5]};
  }
  double x(double u, double v) const { return xu * u + (xv * v + x1); }
  double y(double u, double v) const { return yu * u + (yv * v + y1); }
  bool finite() const {
    return isfinite(xu) && isfinite(xv) && isfinite(x1) && isfinite(yu) && isfinite(yv) &&
           isfinite(y1);
  }
  // Rows and columns of the output are rows and columns of the source.
  bool axis_aligned() const { return xv == 0 && yu == 0; }

 private:
  static bool isfinite(double value) { return value - value == 0; }
};

// Where sample i of `area` lies inside an output pixel, relative to its centre.
inline double subpixel(int i, int area) { return (i + 0.5) / area - 0.5; }

// Position on one axis of `size` source pixels: between pixels `low` and `low` + 1.
struct Between {
  int low;
  float fraction;
};

// False if both pixels lie outside or the position is NaN; so a position beyond int never converts.
inline bool find_between(double position, int size, Between* between) {
  if (!(position > -1 && position < size)) return false;
  const double low = floor(position);
  *between = {static_cast<int>(low), static_cast<float>(position - low)};
  return true;
}

// One interleaved pixel, so that a sample of three channels finds its taps once.
struct Pixel {
  float c0, c1, c2;
};

FASTPOSE_HOST_DEVICE inline float lerp(float a, float b, float t) { return a + t * (b - a); }
FASTPOSE_HOST_DEVICE inline Pixel lerp(Pixel a, Pixel b, float t) {
  return {lerp(a.c0, b.c0, t), lerp(a.c1, b.c1, t), lerp(a.c2, b.c2, t)};
}

// One bilinear sample. load(x, y) is called inside the source only, other taps are `border`; a tap
// of weight zero is not touched, so that it cannot spread an infinity or NaN.
template <class Value, class Load>
inline Value bilinear(const Between& x, const Between& y, int width, int height, Value border,
                      const Load& load) {
  const auto tap = [&](int column, int row) {
    return column >= 0 && column < width && row >= 0 && row < height ? load(column, row) : border;
  };
  const auto along_x = [&](int row) {
    const Value left = tap(x.low, row);
    return x.fraction == 0 ? left : lerp(left, tap(x.low + 1, row), x.fraction);
  };
  const Value above = along_x(y.low);
  return y.fraction == 0 ? above : lerp(above, along_x(y.low + 1), y.fraction);
}

}  // namespace fastpose
