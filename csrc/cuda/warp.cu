// Frames or maps on the device -> a normalised batch: launches and bindings of warp.cuh.
// fastpose._C_cuda takes addresses, sizes and a stream, so one build serves every version of torch;
// with the static runtime it also imports where there is no driver.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "warp.cuh"

namespace py = pybind11;

namespace fastpose {
namespace cuda {
namespace {

using Shape = std::array<int64_t, 2>;
using Sides = std::array<int64_t, 4>;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("cuda ") + what + ": " + cudaGetErrorString(status));
}

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Calls run with a value of the C++ type of that name.
template <class Run>
void for_type(const std::string& type, const Run& run) {
  if (type == "float32") {
    run(float());
  } else if (type == "float16") {
    run(__half());
  } else if (type == "bfloat16") {
    run(__nv_bfloat16());
  } else {
    throw std::invalid_argument("type must be float32, float16 or bfloat16, got " + type);
  }
}

Windows make_windows(uintptr_t affines, uintptr_t source, uintptr_t areas, int sources,
                     int64_t count, Shape size, int area, float border) {
  return {pointer<const float>(affines),
          pointer<const int32_t>(source),
          pointer<const int32_t>(areas),
          sources,
          count,
          static_cast<int>(size[0]),
          static_cast<int>(size[1]),
          area,
          border};
}

// Threads of a window are counted in 32 bits.
dim3 checked_grid(const Windows& windows, int channels, int group) {
  if (shares(windows, channels, group) > INT32_MAX - kMapThreads)
    throw std::invalid_argument("size times channels must be below 2^31 for maps on CUDA");
  return maps_grid(windows, channels, group);
}

template <class T>
Maps<T> make_maps(uintptr_t data, Sides strides, int64_t channels, int64_t height, int64_t width) {
  return {pointer<T>(data),
          strides[0],
          strides[1],
          strides[2],
          strides[3],
          static_cast<int>(channels),
          static_cast<int>(height),
          static_cast<int>(width)};
}

// --- frames ------------------------------------------------------------------------------------

template <class Format, class T, bool kPairs>
void launch_frames(const Frames& frames, const Windows& windows, const FrameOutput& out,
                   cudaStream_t stream) {
  const int rows = rows_of_tile(windows);
  for_grids(frames_grid(windows, rows), windows.count, [&](dim3 grid, int64_t first) {
    warp_frames<Format, T, kPairs>
        <<<grid, dim3(kLanes, kWarps), 0, stream>>>(frames, windows, out, rows, first);
  });
}

void bind_warp_frames(uintptr_t data, Shape strides, Shape shape, uintptr_t table,
                      uintptr_t affines, uintptr_t source, uintptr_t areas, int sources,
                      int64_t count, Shape size, int area, float border, uintptr_t out,
                      const std::string& out_type, std::array<float, 3> scale,
                      std::array<float, 3> shift, bool swap_rb, bool channels_last,
                      const std::optional<std::array<float, 9>>& nv12_matrix, uintptr_t stream) {
  const Frames frames{
      pointer<const int64_t>(table), pointer<const uint8_t>(data), strides[0], strides[1],
      static_cast<int>(shape[0]),    static_cast<int>(shape[1])};
  const Windows windows = make_windows(affines, source, areas, sources, count, size, area, border);
  for_type(out_type, [&](auto real) {
    using T = decltype(real);
    const auto launch = [&](auto format, const float* matrix) {
      using Format = decltype(format);
      const FrameOutput output = frame_output<Format, T>(
          pointer<void>(out), windows, scale.data(), shift.data(), matrix, channels_last, swap_rb);
      auto* queue = pointer<CUstream_st>(stream);
      if constexpr (sizeof(T) == 2) {
        if (stores_pairs<T>(windows, output.data, channels_last))
          return launch_frames<Format, T, true>(frames, windows, output, queue);
      }
      launch_frames<Format, T, false>(frames, windows, output, queue);
    };
    if (nv12_matrix)
      launch(Nv12(), nv12_matrix->data());
    else
      launch(Interleaved(), nullptr);
  });
  check(cudaGetLastError(), "launch of warp");
}

// --- maps --------------------------------------------------------------------------------------

void bind_warp_maps(uintptr_t data, const std::string& type, Sides strides,
                    std::array<int64_t, 3> shape, uintptr_t affines, uintptr_t source,
                    uintptr_t areas, int sources, int64_t count, Shape size, int area, float border,
                    uintptr_t out, const std::string& out_type, uintptr_t scale, uintptr_t shift,
                    bool swap_rb, bool channels_last, uintptr_t stream) {
  const Windows windows = make_windows(affines, source, areas, sources, count, size, area, border);
  const MapOutput output{pointer<void>(out), pointer<const float>(scale),
                         pointer<const float>(shift), channels_last, swap_rb};
  for_type(type, [&](auto real) {
    using From = decltype(real);
    const auto maps = make_maps<const From>(data, strides, shape[0], shape[1], shape[2]);
    const bool vector = !swap_rb && reads_vectors(maps);
    const dim3 grid =
        checked_grid(windows, maps.channels, vector ? kGroupOf<From, true> : kStridedGroup);
    for_type(out_type, [&](auto other) {
      using To = decltype(other);
      const auto kernel = vector ? warp_maps<From, To, true> : warp_maps<From, To, false>;
      for_grids(grid, count, [&](dim3 part, int64_t first) {
        kernel<<<part, kMapThreads, 0, pointer<CUstream_st>(stream)>>>(maps, windows, output,
                                                                       first);
      });
    });
  });
  check(cudaGetLastError(), "launch of warp");
}

void bind_scatter_maps(uintptr_t grad, const std::string& type, Sides grad_strides, uintptr_t total,
                       Sides strides, std::array<int64_t, 3> shape, uintptr_t affines,
                       uintptr_t source, uintptr_t areas, int sources, int64_t count, Shape size,
                       int area, uintptr_t scale, bool swap_rb, uintptr_t stream) {
  const Windows windows = make_windows(affines, source, areas, sources, count, size, area, 0);
  const auto maps = make_maps<float>(total, strides, shape[0], shape[1], shape[2]);
  const dim3 grid = checked_grid(windows, maps.channels, kStridedGroup);
  for_type(type, [&](auto real) {
    using From = decltype(real);
    const auto given = make_maps<const From>(grad, grad_strides, shape[0], size[0], size[1]);
    for_grids(grid, count, [&](dim3 part, int64_t first) {
      scatter_maps<From><<<part, kMapThreads, 0, pointer<CUstream_st>(stream)>>>(
          given, windows, maps, pointer<const float>(scale), swap_rb, first);
    });
  });
  check(cudaGetLastError(), "launch of the gradient of warp");
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace
}  // namespace cuda
}  // namespace fastpose

PYBIND11_MODULE(_C_cuda, m) {
  using namespace fastpose::cuda;
  m.doc() = "CUDA kernels of fastpose";
  m.def("device_count", &device_count);
  m.def("warp_frames", &bind_warp_frames, py::kw_only(), py::arg("data"), py::arg("strides"),
        py::arg("shape"), py::arg("table"), py::arg("affines"), py::arg("source"), py::arg("areas"),
        py::arg("sources"), py::arg("count"), py::arg("size"), py::arg("area"), py::arg("border"),
        py::arg("out"), py::arg("out_type"), py::arg("scale"), py::arg("shift"), py::arg("swap_rb"),
        py::arg("channels_last"), py::arg("nv12_matrix"), py::arg("stream"));
  m.def("warp_maps", &bind_warp_maps, py::kw_only(), py::arg("data"), py::arg("maps_type"),
        py::arg("strides"), py::arg("shape"), py::arg("affines"), py::arg("source"),
        py::arg("areas"), py::arg("sources"), py::arg("count"), py::arg("size"), py::arg("area"),
        py::arg("border"), py::arg("out"), py::arg("out_type"), py::arg("scale"), py::arg("shift"),
        py::arg("swap_rb"), py::arg("channels_last"), py::arg("stream"));
  m.def("scatter_maps", &bind_scatter_maps, py::kw_only(), py::arg("grad"), py::arg("grad_type"),
        py::arg("grad_strides"), py::arg("total"), py::arg("strides"), py::arg("shape"),
        py::arg("affines"), py::arg("source"), py::arg("areas"), py::arg("sources"),
        py::arg("count"), py::arg("size"), py::arg("area"), py::arg("scale"), py::arg("swap_rb"),
        py::arg("stream"));
}
