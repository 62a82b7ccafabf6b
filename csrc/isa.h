// Which of a kernel's twins runs. Every kernel with hand-written vector code has a scalar twin with
// the same meaning; tests compare the two by naming the instruction set.
#pragma once

#include <string>

namespace fastpose {

enum class Isa { Scalar, Avx2, Avx512 };

// The widest instruction set of this processor.
Isa best_isa();

// Whether it has the byte permutations of AVX-512 VBMI and the multiply-add of VNNI, which Avx512
// does not promise.
bool has_vbmi();

// "auto", "scalar", "avx2" or "avx512". Throws std::invalid_argument for another name and for a set
// that this processor lacks: a set that was named never falls back.
Isa parse_isa(const std::string& name);

const char* isa_name(Isa isa);

}  // namespace fastpose
