// fastpose._C: what Python sees of the kernels. No logic: an adapter reads pointers and shapes off
// numpy arrays, releases the GIL and calls the kernel. Arrays are taken `noconvert`, so a wrong
// type raises TypeError instead of being copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "fastpose.h"
#include "isa.h"
#include "pool.h"

namespace py = pybind11;
using fastpose::parse_isa;

namespace {

// A C-contiguous array of exactly this type.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

using Integers = std::optional<Array<int32_t>>;

fastpose::Real real_type(const py::array& out) {
  if (out.itemsize() == 4) return fastpose::Real::F32;
  return out.dtype().kind() == 'f' ? fastpose::Real::F16 : fastpose::Real::Bf16;
}

int size(const py::array& array, int axis) { return static_cast<int>(array.shape(axis)); }

// The arguments that warp has for frames and for maps alike.
struct Warp {
  fastpose::Windows windows;
  fastpose::WarpOutput out;
  fastpose::Isa isa;
  bool vbmi;

  Warp(const Array<float>& affines, const Integers& source, const Integers& areas,
       py::array& result, const Array<float>& scale, const Array<float>& shift, float border,
       int area, bool swap_rb, bool channels_last, const std::string& isa_name)
      : windows{affines.data(),
                source ? source->data() : nullptr,
                areas ? areas->data() : nullptr,
                result.shape(0),
                size(result, channels_last ? 1 : 2),
                size(result, channels_last ? 2 : 3),
                area,
                border},
        out{result.mutable_data(), scale.data(),  shift.data(), size(result, channels_last ? 3 : 1),
            real_type(result),     channels_last, swap_rb},
        isa(parse_isa(isa_name)),
        vbmi(isa_name == "auto" && fastpose::has_vbmi()) {}
};

void warp_frames(const fastpose::ByteFrames& frames, const Warp& warp) {
  const py::gil_scoped_release nogil;
  fastpose::warp_bytes(frames, warp.windows, warp.out, warp.isa, warp.vbmi);
}

void warp_bytes(const py::array_t<uint8_t>& frames, const Array<float>& affines,
                const Integers& source, const Integers& areas, py::array out,
                const Array<float>& scale, const Array<float>& shift, float border, int area,
                bool swap_rb, bool channels_last, const std::string& isa) {
  warp_frames(
      {frames.data(), frames.strides(0), frames.strides(1), size(frames, 1), size(frames, 2),
       frames.shape(0), nullptr},
      {affines, source, areas, out, scale, shift, border, area, swap_rb, channels_last, isa});
}

void warp_table(const Array<int64_t>& table, const Array<float>& affines, const Integers& source,
                const Integers& areas, py::array out, const Array<float>& scale,
                const Array<float>& shift, float border, int area, bool swap_rb, bool channels_last,
                const std::string& isa) {
  fastpose::ByteFrames frames{};
  frames.count = table.shape(0);
  frames.table = reinterpret_cast<const fastpose::FrameRow*>(table.data());
  warp_frames(frames, {affines, source, areas, out, scale, shift, border, area, swap_rb,
                       channels_last, isa});
}

void warp_maps(const py::array_t<float>& maps, const Array<float>& affines, const Integers& source,
               const Integers& areas, py::array out, const Array<float>& scale,
               const Array<float>& shift, float border, int area, bool swap_rb, bool channels_last,
               const std::string& isa) {
  const Warp warp(affines, source, areas, out, scale, shift, border, area, swap_rb, channels_last,
                  isa);
  const int64_t item = sizeof(float);
  const fastpose::FloatMaps source_maps{
      maps.data(),   maps.strides(0) / item, maps.strides(1) / item, maps.strides(2) / item,
      size(maps, 2), size(maps, 3)};
  const py::gil_scoped_release nogil;
  fastpose::warp_maps(source_maps, warp.windows, warp.out, warp.isa);
}

void decode(const py::array& maps, const std::optional<py::array>& flipped,
            const Array<int32_t>& partner, bool mean, int flip_shift, const std::string& method,
            const Array<double>& taps, double peak_value,
            const std::optional<Array<double>>& affines, Array<float>& points, Array<float>& scores,
            const std::string& isa) {
  const fastpose::DecodeJob job{maps.data(),
                                flipped ? flipped->data() : nullptr,
                                partner.data(),
                                real_type(maps),
                                maps.shape(0),
                                maps.shape(1),
                                maps.shape(2),
                                size(maps, 3),
                                size(maps, 4),
                                mean,
                                flip_shift,
                                fastpose::parse_decode_method(method),
                                taps.data(),
                                size(taps, 0) / 2,
                                size(scores, 2),
                                peak_value,
                                affines ? affines->data() : nullptr,
                                points.mutable_data(),
                                scores.mutable_data()};
  const fastpose::Isa chosen = parse_isa(isa);
  const py::gil_scoped_release nogil;
  fastpose::decode(job, chosen);
}

fastpose::Bins bins_of(const py::array_t<float>& bins) {
  const int64_t item = sizeof(float);
  return {bins.data(), bins.strides(0) / item, bins.strides(1) / item, size(bins, 2)};
}

using Vectors = std::optional<py::array_t<float>>;

void decode_simcc(const py::array_t<float>& x, const py::array_t<float>& y,
                  const Vectors& flipped_x, const Vectors& flipped_y, const Array<int32_t>& partner,
                  double split, int flip_shift, double peak_value,
                  const std::optional<Array<double>>& affines, Array<float>& points,
                  Array<float>& scores, const std::string& isa) {
  const fastpose::SimccJob job{bins_of(x),
                               bins_of(y),
                               flipped_x ? bins_of(*flipped_x) : fastpose::Bins{},
                               flipped_y ? bins_of(*flipped_y) : fastpose::Bins{},
                               partner.data(),
                               x.shape(0),
                               x.shape(1),
                               split,
                               flip_shift,
                               peak_value,
                               affines ? affines->data() : nullptr,
                               points.mutable_data(),
                               scores.mutable_data()};
  const fastpose::Isa chosen = parse_isa(isa);
  const py::gil_scoped_release nogil;
  fastpose::decode_simcc(job, chosen);
}

template <class T>
Array<T> array_of(const std::vector<T>& values) {
  return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple tuple_of(const fastpose::Kept& kept) {
  return py::make_tuple(array_of(kept.indices), array_of(kept.scores));
}

py::tuple suppress_boxes(const Array<double>& boxes, const Array<double>& scores,
                         const Array<int64_t>& classes, const std::string& method, double iou,
                         double sigma, double floor) {
  const fastpose::Suppression rule{fastpose::parse_suppress_method(method), iou, sigma, floor};
  fastpose::Kept kept;
  {
    const py::gil_scoped_release nogil;
    kept = fastpose::suppress_boxes(boxes.data(), scores.data(), classes.data(), scores.shape(0),
                                    rule);
  }
  return tuple_of(kept);
}

py::tuple suppress_poses(const Array<double>& keypoints, const Array<double>& scores,
                         const Array<double>& areas, const Array<double>& sigmas,
                         const std::string& method, double oks) {
  const double no_floor = -std::numeric_limits<double>::infinity();
  const fastpose::Suppression rule{fastpose::parse_suppress_method(method), oks, oks, no_floor};
  fastpose::Kept kept;
  {
    const py::gil_scoped_release nogil;
    kept = fastpose::suppress_poses(keypoints.data(), scores.data(), areas.data(), sigmas.data(),
                                    scores.shape(0), sigmas.shape(0), rule);
  }
  return tuple_of(kept);
}

py::tuple fit_tree(const Array<float>& scores, const Array<int64_t>& parents,
                   const Array<int64_t>& order, const Array<int64_t>& anchors, double weight) {
  const py::ssize_t n = scores.shape(0), parts = scores.shape(1);
  Array<float> points({n, parts, py::ssize_t{2}});
  Array<int64_t> types({n, parts});
  Array<double> total(n);
  const fastpose::TreeJob job{scores.data(),         n,
                              size(scores, 1),       size(scores, 2),
                              size(scores, 3),       size(scores, 4),
                              parents.data(),        order.data(),
                              anchors.data(),        weight,
                              points.mutable_data(), types.mutable_data(),
                              total.mutable_data()};
  {
    const py::gil_scoped_release nogil;
    fastpose::fit_tree(job);
  }
  return py::make_tuple(points, types, total);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastpose";

  m.def("best_isa", [] { return fastpose::isa_name(fastpose::best_isa()); });
  m.def("get_num_threads", &fastpose::get_num_threads);
  m.def("set_num_threads", &fastpose::set_num_threads, py::arg("threads"));

  const auto def_warp = [&](const char* name, auto* function, const char* frames) {
    m.def(name, function, py::arg(frames).noconvert(), py::arg("affines").noconvert(),
          py::arg("source").noconvert(), py::arg("areas").noconvert(), py::arg("out").noconvert(),
          py::arg("scale").noconvert(), py::arg("shift").noconvert(), py::arg("border"),
          py::arg("area"), py::arg("swap_rb"), py::arg("channels_last"), py::arg("isa") = "auto");
  };
  def_warp("warp_bytes", &warp_bytes, "frames");
  def_warp("warp_table", &warp_table, "table");
  def_warp("warp_maps", &warp_maps, "maps");

  m.def("decode", &decode, py::arg("maps").noconvert(), py::arg("flipped").noconvert(),
        py::arg("partner").noconvert(), py::arg("mean"), py::arg("flip_shift"), py::arg("method"),
        py::arg("taps").noconvert(), py::arg("peak_value"), py::arg("affines").noconvert(),
        py::arg("points").noconvert(), py::arg("scores").noconvert(), py::arg("isa") = "auto");

  m.def("decode_simcc", &decode_simcc, py::arg("x").noconvert(), py::arg("y").noconvert(),
        py::arg("flipped_x").noconvert(), py::arg("flipped_y").noconvert(),
        py::arg("partner").noconvert(), py::arg("split"), py::arg("flip_shift"),
        py::arg("peak_value"), py::arg("affines").noconvert(), py::arg("points").noconvert(),
        py::arg("scores").noconvert(), py::arg("isa") = "auto");

  m.def("suppress_boxes", &suppress_boxes, py::arg("boxes").noconvert(),
        py::arg("scores").noconvert(), py::arg("classes").noconvert(), py::arg("method"),
        py::arg("iou"), py::arg("sigma"), py::arg("floor"));
  m.def("suppress_poses", &suppress_poses, py::arg("keypoints").noconvert(),
        py::arg("scores").noconvert(), py::arg("areas").noconvert(), py::arg("sigmas").noconvert(),
        py::arg("method"), py::arg("oks"));

  m.def("fit_tree", &fit_tree, py::arg("scores").noconvert(), py::arg("parents").noconvert(),
        py::arg("order").noconvert(), py::arg("anchors").noconvert(), py::arg("weight"));
}
