// The kernels: pointers, sizes and strides, no framework. Arguments are checked by the public
// function in fastpose/ops; a kernel trusts them.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fastpose {}  // namespace fastpose
