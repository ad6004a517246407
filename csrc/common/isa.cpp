#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace vidk {
namespace {

bool runs_here(Isa isa) {
  if (isa == Isa::kGeneric) return true;
#if VIDK_HAS_X86_ISAS
  __builtin_cpu_init();
  // What the build's flags for the two let the compiler use.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  if (isa == Isa::kAvx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

Isa best_isa() {
  if (runs_here(Isa::kAvx512)) return Isa::kAvx512;
  if (runs_here(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kGeneric;
}

Isa choose_isa() {
  const char* env = std::getenv("VIDK_CPU_ISA");
  if (env == nullptr || *env == '\0') return best_isa();
  const std::string name(env);
  for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512}) {
    if (name != isa_name(isa)) continue;
    if (runs_here(isa)) return isa;
    throw std::runtime_error("vidk: VIDK_CPU_ISA: got '" + name +
                             "', expected an instruction set that this CPU has (the best is '" +
                             isa_name(best_isa()) + "')");
  }
  throw std::runtime_error("vidk: VIDK_CPU_ISA: got '" + name +
                           "', expected 'generic', 'avx2' or 'avx512'");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "generic";
  }
}

Isa cpu_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

}  // namespace vidk
