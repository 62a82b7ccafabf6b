// Frames or float maps on the device -> a normalised batch, with the arithmetic of csrc/affine.h.
// fastpose._C_cuda takes addresses, sizes and a stream, so one build serves every version of torch;
// with the static runtime it also imports where there is no driver.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "affine.h"

namespace py = pybind11;

namespace fastpose {
namespace {

constexpr int kTileWidth = 32, kTileHeight = 8;
constexpr int kThreads = 256;
constexpr int64_t kMaxGridZ = 65535;

// What is cut, as in csrc/fastpose.h; a source index out of range gives a window of border.
struct Windows {
  const float* affines;
  const int32_t* source;
  int sources;
  int64_t count;
  int height, width, area;
  float border;
};

__device__ int source_of(const Windows& windows, int64_t window) {
  return windows.source ? windows.source[window] : 0;
}

__device__ bool usable(const Windows& windows, const Affine& affine, int source) {
  return affine.finite() && source >= 0 && source < windows.sources;
}

template <class T>
__device__ T as_real(float value);
template <>
__device__ float as_real<float>(float value) {
  return value;
}
template <>
__device__ __half as_real<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __nv_bfloat16 as_real<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// --- frames ------------------------------------------------------------------------------------

struct Frames {
  const uint8_t* data;
  int64_t frame_stride, row_stride;  // bytes
  int height, width;
};

struct Interleaved {
  __device__ static Pixel load(const Frames&, const uint8_t* frame, int64_t stride, int x, int y,
                               const float*) {
    const uint8_t* pixel = frame + y * stride + 3 * x;
    return {float(pixel[0]), float(pixel[1]), float(pixel[2])};
  }
};

// Luma rows, then rows of interleaved chroma at half the resolution; every pixel takes the chroma
// of its own 2x2 cell. `matrix` is [3, 3]: rows B, G, R, columns Y - 16, U - 128, V - 128.
struct Nv12 {
  __device__ static Pixel load(const Frames& frames, const uint8_t* frame, int64_t stride, int x,
                               int y, const float* matrix) {
    const uint8_t* chroma = frame + (frames.height + y / 2) * stride + x / 2 * 2;
    const float luma = frame[y * stride + x] - 16.0f;
    const float u = chroma[0] - 128.0f, v = chroma[1] - 128.0f;
    const auto channel = [&](const float* row) {
      return fminf(fmaxf(row[0] * luma + row[1] * u + row[2] * v, 0.0f), 255.0f);
    };
    return {channel(matrix), channel(matrix + 3), channel(matrix + 6)};
  }
};

struct FrameOutput {
  void* data;
  float scale[3], shift[3];  // by output channel, for the sum of all samples
  float matrix[9];           // of Nv12
  bool channels_last, swap_rb;
};

// One thread for each output pixel.
template <class Format, class T>
__global__ void warp_frames(const Frames frames, const Windows windows, const FrameOutput out) {
  const int u = blockIdx.x * kTileWidth + threadIdx.x;
  const int v = blockIdx.y * kTileHeight + threadIdx.y;
  if (u >= windows.width || v >= windows.height) return;
  const Pixel border{windows.border, windows.border, windows.border};
  for (int64_t window = blockIdx.z; window < windows.count; window += gridDim.z) {
    const Affine affine = Affine::load(windows.affines + 6 * window);
    const int source = source_of(windows, window);
    const bool known = usable(windows, affine, source);
    const uint8_t* frame = frames.data + (known ? source : 0) * frames.frame_stride;
    const auto load = [&](int x, int y) {
      return Format::load(frames, frame, frames.row_stride, x, y, out.matrix);
    };
    Pixel sum{0, 0, 0};
    for (int sample = 0; sample < windows.area * windows.area; ++sample) {
      const double column = u + subpixel(sample % windows.area, windows.area);
      const double row = v + subpixel(sample / windows.area, windows.area);
      Between x, y;
      Pixel value = border;
      if (known && find_between(affine.x(column, row), frames.width, &x) &&
          find_between(affine.y(column, row), frames.height, &y))
        value = bilinear(x, y, frames.width, frames.height, border, load);
      sum = {sum.c0 + value.c0, sum.c1 + value.c1, sum.c2 + value.c2};
    }
    const float values[3] = {out.swap_rb ? sum.c2 : sum.c0, sum.c1, out.swap_rb ? sum.c0 : sum.c2};
    const int64_t plane = int64_t(windows.height) * windows.width;
    const int64_t pixel = int64_t(v) * windows.width + u;
    const int64_t step = out.channels_last ? 1 : plane;
    T* to =
        static_cast<T*>(out.data) + window * 3 * plane + (out.channels_last ? 3 * pixel : pixel);
    for (int c = 0; c < 3; ++c) to[c * step] = as_real<T>(values[c] * out.scale[c] + out.shift[c]);
  }
}

// --- maps --------------------------------------------------------------------------------------

struct Maps {
  const float* data;
  int64_t map_stride, channel_stride, row_stride;  // elements
  int channels, height, width;
};

struct MapOutput {
  void* data;
  const float* scale;  // [channels] for the mean of all samples, or null: no normalisation
  const float* shift;
  bool channels_last, swap_rb;
};

// One thread for each output value, in the order of memory.
template <class T>
__global__ void warp_maps(const Maps maps, const Windows windows, const MapOutput out) {
  const int64_t plane = int64_t(windows.height) * windows.width;
  const int64_t total = windows.count * maps.channels * plane;
  for (int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x; i < total;
       i += gridDim.x * int64_t(kThreads)) {
    const int64_t window = i / (maps.channels * plane), rest = i % (maps.channels * plane);
    const int c = int(out.channels_last ? rest % maps.channels : rest / plane);
    const int64_t pixel = out.channels_last ? rest / maps.channels : rest % plane;
    const int u = int(pixel % windows.width), v = int(pixel / windows.width);
    const Affine affine = Affine::load(windows.affines + 6 * window);
    const int source = source_of(windows, window);
    const bool known = usable(windows, affine, source);
    const float* map = maps.data + (known ? source : 0) * maps.map_stride +
                       (out.swap_rb ? maps.channels - 1 - c : c) * maps.channel_stride;
    const auto load = [&](int x, int y) { return map[y * maps.row_stride + x]; };
    float sum = 0;
    for (int sample = 0; sample < windows.area * windows.area; ++sample) {
      const double column = u + subpixel(sample % windows.area, windows.area);
      const double row = v + subpixel(sample / windows.area, windows.area);
      Between x, y;
      const bool inside = known && find_between(affine.x(column, row), maps.width, &x) &&
                          find_between(affine.y(column, row), maps.height, &y);
      sum +=
          inside ? bilinear(x, y, maps.width, maps.height, windows.border, load) : windows.border;
    }
    const float mean = sum / float(windows.area * windows.area);
    static_cast<T*>(out.data)[i] =
        as_real<T>(out.scale ? mean * out.scale[c] + out.shift[c] : mean);
  }
}

// --- launching ---------------------------------------------------------------------------------

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("cuda ") + what + ": " + cudaGetErrorString(status));
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class Format, class T>
void launch_frames(const Frames& frames, const Windows& windows, const FrameOutput& out,
                   cudaStream_t stream) {
  const dim3 tile(kTileWidth, kTileHeight);
  const dim3 grid((windows.width + kTileWidth - 1) / kTileWidth,
                  (windows.height + kTileHeight - 1) / kTileHeight,
                  static_cast<unsigned>(std::min(windows.count, kMaxGridZ)));
  warp_frames<Format, T><<<grid, tile, 0, stream>>>(frames, windows, out);
}

template <class T>
void launch_maps(const Maps& maps, const Windows& windows, const MapOutput& out,
                 cudaStream_t stream) {
  const int64_t total = windows.count * maps.channels * windows.height * windows.width;
  const int64_t blocks = std::min<int64_t>((total + kThreads - 1) / kThreads, INT32_MAX);
  warp_maps<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(maps, windows, out);
}

// Calls launch with a value of the output's C++ type.
template <class Launch>
void for_type(const std::string& type, const Launch& launch) {
  if (type == "float32") {
    launch(float());
  } else if (type == "float16") {
    launch(__half());
  } else if (type == "bfloat16") {
    launch(__nv_bfloat16());
  } else {
    throw std::invalid_argument("type must be float32, float16 or bfloat16, got " + type);
  }
  check(cudaGetLastError(), "launch of warp");
}

using Shape = std::array<int64_t, 2>;

Windows make_windows(uintptr_t affines, uintptr_t source, int sources, int64_t count, Shape size,
                     int area, float border) {
  return {pointer<const float>(affines), pointer<const int32_t>(source), sources, count,
          static_cast<int>(size[0]),     static_cast<int>(size[1]),      area,    border};
}

void bind_warp_frames(uintptr_t data, Shape strides, Shape shape, uintptr_t affines,
                      uintptr_t source, int sources, int64_t count, Shape size, int area,
                      float border, uintptr_t out, const std::string& type,
                      std::array<float, 3> scale, std::array<float, 3> shift, bool swap_rb,
                      bool channels_last, const std::optional<std::array<float, 9>>& nv12_matrix,
                      uintptr_t stream) {
  const Frames frames{pointer<const uint8_t>(data), strides[0], strides[1],
                      static_cast<int>(shape[0]), static_cast<int>(shape[1])};
  const Windows windows = make_windows(affines, source, sources, count, size, area, border);
  FrameOutput output{pointer<void>(out), {}, {}, {}, channels_last, swap_rb};
  for (int c = 0; c < 3; ++c) {
    output.scale[c] = scale[c] / static_cast<float>(area * area);
    output.shift[c] = shift[c];
  }
  if (nv12_matrix) std::copy(nv12_matrix->begin(), nv12_matrix->end(), output.matrix);
  for_type(type, [&](auto real) {
    using T = decltype(real);
    auto* const launch = nv12_matrix ? launch_frames<Nv12, T> : launch_frames<Interleaved, T>;
    launch(frames, windows, output, pointer<CUstream_st>(stream));
  });
}

void bind_warp_maps(uintptr_t data, std::array<int64_t, 3> strides, std::array<int64_t, 3> shape,
                    uintptr_t affines, uintptr_t source, int sources, int64_t count, Shape size,
                    int area, float border, uintptr_t out, const std::string& type, uintptr_t scale,
                    uintptr_t shift, bool swap_rb, bool channels_last, uintptr_t stream) {
  const Maps maps{pointer<const float>(data),
                  strides[0],
                  strides[1],
                  strides[2],
                  static_cast<int>(shape[0]),
                  static_cast<int>(shape[1]),
                  static_cast<int>(shape[2])};
  const Windows windows = make_windows(affines, source, sources, count, size, area, border);
  const MapOutput output{pointer<void>(out), pointer<const float>(scale),
                         pointer<const float>(shift), channels_last, swap_rb};
  for_type(type, [&](auto real) {
    launch_maps<decltype(real)>(maps, windows, output, pointer<CUstream_st>(stream));
  });
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace
}  // namespace fastpose

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of fastpose";
  m.def("device_count", &fastpose::device_count);
  m.def("warp_frames", &fastpose::bind_warp_frames, py::kw_only(), py::arg("data"),
        py::arg("strides"), py::arg("shape"), py::arg("affines"), py::arg("source"),
        py::arg("sources"), py::arg("count"), py::arg("size"), py::arg("area"), py::arg("border"),
        py::arg("out"), py::arg("out_type"), py::arg("scale"), py::arg("shift"), py::arg("swap_rb"),
        py::arg("channels_last"), py::arg("nv12_matrix"), py::arg("stream"));
  m.def("warp_maps", &fastpose::bind_warp_maps, py::kw_only(), py::arg("data"), py::arg("strides"),
        py::arg("shape"), py::arg("affines"), py::arg("source"), py::arg("sources"),
        py::arg("count"), py::arg("size"), py::arg("area"), py::arg("border"), py::arg("out"),
        py::arg("out_type"), py::arg("scale"), py::arg("shift"), py::arg("swap_rb"),
        py::arg("channels_last"), py::arg("stream"));
}
