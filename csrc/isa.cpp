#include "isa.h"

#include <stdexcept>

namespace fastpose {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::Scalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::Avx512 : Isa::Avx2;
#else
  return Isa::Scalar;
#endif
}

bool has_vbmi() {
#if defined(__x86_64__)
  return best_isa() == Isa::Avx512 && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

Isa parse_isa(const std::string& name) {
  static const Isa best = best_isa();
  if (name == "auto") return best;
  for (const Isa isa : {Isa::Scalar, Isa::Avx2, Isa::Avx512}) {
    if (name != isa_name(isa)) continue;
    if (isa <= best) return isa;
    throw std::invalid_argument("isa: this processor has no " + name + ", at most " +
                                isa_name(best));
  }
  throw std::invalid_argument("isa must be auto, scalar, avx2 or avx512, got " + name);
}

}  // namespace fastpose
