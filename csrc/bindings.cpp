// fastpose._C: what Python sees of the kernels. No logic: an adapter reads pointers and shapes off
// numpy arrays, releases the GIL and calls the kernel. Arrays are taken `noconvert`, so a wrong
// type raises TypeError instead of being copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "fastpose.h"
#include "isa.h"
#include "pool.h"

namespace py = pybind11;
using fastpose::parse_isa;

namespace {

// A C-contiguous array of exactly this type.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of fastpose";

  m.def("best_isa", [] { return fastpose::isa_name(fastpose::best_isa()); });
  m.def("get_num_threads", &fastpose::get_num_threads);
  m.def("set_num_threads", &fastpose::set_num_threads, py::arg("threads"));
}
