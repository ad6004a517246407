// What the kernels of fp4_attention for tensor memory differ in: codes, and values. Torch-free.
#pragma once

#include <cstdint>

#include "common/tcgen05.cuh"
#include "fp4_attention/fp4_attention_sm100_kernel.h"

namespace vidk::fp4_sm100 {

template <int kRowBytes_, int kScaleCols, bool kMxfp8_>
struct Codes {
  static constexpr bool kMxfp8 = kMxfp8_;
  static constexpr int kRowBytes = kRowBytes_;
  static constexpr int kPanel = fp4_sm100_panel(kRowBytes);
  static constexpr int kAtoms = kScaleCols / 4;
  static constexpr int kSteps = kRowBytes / 32;  // an instruction takes 32 bytes of a row
  static constexpr Fp4Sm100Shared kShared{kRowBytes, kScaleCols};
};

// Weights and values. A weight is exp2(logit - m + kLog2Prescale), where m may lie below the
// row's maximum by up to kSlack before the output is rescaled. Rows of values lie in shared memory
// in columns of 128 bytes: as many as an element has bytes.
struct BFloat16Values {
  static constexpr int kBytes = 2;
  static constexpr int kStepKeys = 16;  // of an instruction
  static constexpr float kLog2Prescale = 0, kSlack = 8;
  static constexpr uint32_t kInstruction = tcgen05::kBFloat16;
  static __device__ void multiply(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                  bool accumulate) {
    tcgen05::multiply_f16_from_tensor(d, a, b, instruction, accumulate);
  }
  static __device__ uint32_t pack(const float* p) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(p[1]), "f"(p[0]));
    return word;
  }
};
struct Fp8Values {
  static constexpr int kBytes = 1;
  static constexpr int kStepKeys = 32;
  static constexpr float kLog2Prescale = 4, kSlack = 4;
  static constexpr uint32_t kInstruction = tcgen05::kE4M3;
  static __device__ void multiply(uint32_t d, uint32_t a, uint64_t b, uint32_t instruction,
                                  bool accumulate) {
    tcgen05::multiply_fp8_from_tensor(d, a, b, instruction, accumulate);
  }
  static __device__ uint32_t pack(const float* p) {
    uint32_t word;
    asm("{ .reg .b16 low, high;\n"
        "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "mov.b32 %0, {low, high}; }"
        : "=r"(word)
        : "f"(p[0]), "f"(p[1]), "f"(p[2]), "f"(p[3]));
    return word;
  }
};
// A weight that saturates would be less than its part of the sum, which is not rounded.
static_assert(Fp8Values::kLog2Prescale + Fp8Values::kSlack <= 8.807f, "2^8.807 < 448, E4M3's last");

}  // namespace vidk::fp4_sm100
