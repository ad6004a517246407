// Run-time choice among the copies of a `<family>_simd.cpp`, which CMake compiles once per ISA.
//
// Such a file is torch-free and holds everything in `namespace vidk::VIDK_ISA { }`, with VIDK_ISA
// defined as generic, avx2 or avx512. Its header declares the entry points for all of them with
// VIDK_DECLARE_ISA at global scope, and the op calls them through VIDK_DISPATCH_ISA.
#pragma once

namespace vidk {

enum class Isa { kGeneric, kAvx2, kAvx512 };

// The best ISA that both this build and this CPU have, or the one that VIDK_CPU_ISA names; throws
// std::runtime_error when that one is unknown or cannot run here.
Isa cpu_isa();

// "generic", "avx2" or "avx512".
const char* isa_name(Isa isa);

}  // namespace vidk

#if defined(__x86_64__)
#define VIDK_HAS_X86_ISAS 1
#define VIDK_DECLARE_ISA(...) \
  namespace vidk::generic {   \
  __VA_ARGS__                 \
  }                           \
  namespace vidk::avx2 {      \
  __VA_ARGS__                 \
  }                           \
  namespace vidk::avx512 {    \
  __VA_ARGS__                 \
  }
#define VIDK_DISPATCH_ISA(fn, ...)                                             \
  (::vidk::cpu_isa() == ::vidk::Isa::kAvx512 ? ::vidk::avx512::fn(__VA_ARGS__) \
   : ::vidk::cpu_isa() == ::vidk::Isa::kAvx2 ? ::vidk::avx2::fn(__VA_ARGS__)   \
                                             : ::vidk::generic::fn(__VA_ARGS__))
#else
#define VIDK_HAS_X86_ISAS 0
#define VIDK_DECLARE_ISA(...) \
  namespace vidk::generic {   \
  __VA_ARGS__                 \
  }
#define VIDK_DISPATCH_ISA(fn, ...) (::vidk::generic::fn(__VA_ARGS__))
#endif
