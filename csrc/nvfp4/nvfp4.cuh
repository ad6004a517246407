// NVFP4 arithmetic on blocks of 16 elements that lie across neighbouring lanes of a warp. Device
// code, torch-free. No instruction that only some architectures have, and the bits of the CPU
// kernel: nothing is contracted, and sums go by pairs of neighbours.
#pragma once

#include <cstdint>

#include "nvfp4/nvfp4_recipe.h"

namespace vidk::nvfp4 {

// A number of a small format: its code, without sign, and its value.
struct Coded {
  uint32_t code;
  float value;
};

// Rounds a magnitude to E2M1: adding a number that is large enough leaves the sum's last bit worth
// a step. The large number also counts the steps below its own range, so the code is in the lowest
// three bits; bits above them are rubbish. A NaN rounds as 6 does.
__device__ inline Coded round_e2m1(float x) {
  x = fminf(x, 6.0f);
  const float big = x < 2.0f ? 0x1.8p22f : x < 4.0f ? 0x1.8p23f + 2.0f : 0x1.8p24f + 8.0f;
  const float sum = __fadd_rn(x, big);
  return {__float_as_uint(sum), __fsub_rn(sum, big)};
}

// Rounds a magnitude to E4M3, saturating; a NaN stays one.
__device__ inline Coded round_e4m3(float x) {
  if (x != x) return {0x7fu, x};
  constexpr uint32_t kFirst = 121u << 23;  // the smallest normal number, 2^-6
  x = fminf(x, 448.0f);
  const uint32_t exponent = max(__float_as_uint(x) & 0x7f800000u, kFirst);
  const uint32_t big = exponent + (20u << 23) + (1u << 22);
  const float sum = __fadd_rn(x, __uint_as_float(big));
  return {__float_as_uint(sum) - big + ((exponent - kFirst) >> 20),
          __fsub_rn(sum, __uint_as_float(big))};
}

__device__ inline float e4m3_value(uint32_t code) {
  return code < 8 ? static_cast<float>(code) * 0x1p-9f
                  : __uint_as_float((code << 20) + (120u << 23));
}

// What lanes that share a block add up or compare; every one of them gets the result.
template <int kLanes>
__device__ float sum_of_lanes(float x) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

template <int kLanes>
__device__ uint32_t max_of_lanes(uint32_t x) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    x = max(x, __shfl_xor_sync(0xffffffffu, x, step));
  }
  return x;
}

// One lane's share of a block under one choice of scale.
struct Quantized {
  uint32_t scale;  // E4M3 code
  uint32_t codes;  // four bits an element, the first the lowest; without signs
  float error;     // of the whole block
};

template <int kValues, bool kWithError>
__device__ Quantized quantize(const float (&size)[kValues], Coded scale) {
  const float inverse = scale.value == 0.0f ? 0.0f : __frcp_rn(scale.value);
  // Four codes a word: the rubbish above each stays above bit 16.
  uint32_t word[2] = {0, 0};
  float square[kValues];
#pragma unroll
  for (int i = kValues - 1; i >= 0; --i) {
    const Coded c = round_e2m1(__fmul_rn(size[i], inverse));
    word[i / 4] = 16 * word[i / 4] + c.code;
    if constexpr (kWithError) {
      // The product of two short numbers is exact: fused or not, one rounding.
      const float off = __fmaf_rn(-c.value, scale.value, size[i]);
      square[i] = __fmul_rn(off, off);
    }
  }
  Quantized q{scale.code, __byte_perm(word[0], word[1], 0x5410), 0.0f};
  if constexpr (kWithError) {
#pragma unroll
    for (int n = kValues / 2; n > 0; n /= 2) {
#pragma unroll
      for (int i = 0; i < n; ++i) square[i] = __fadd_rn(square[2 * i], square[2 * i + 1]);
    }
    q.error = sum_of_lanes<16 / kValues>(square[0]);
  }
  return q;
}

// Quantises blocks that lie across 16 / kValues lanes each; all lanes of the warp take part.
template <Nvfp4Recipe kRecipe, int kValues>
__device__ Quantized quantize(const float (&x)[kValues]) {
  constexpr bool kChooses = kRecipe != Nvfp4Recipe::kPlain;
  uint32_t most = 0;
  uint32_t signs = 0;
  float size[kValues];
#pragma unroll
  for (int i = kValues - 1; i >= 0; --i) {
    size[i] = fabsf(x[i]);
    most = max(most, __float_as_uint(size[i]));
    signs = 16 * signs + (__float_as_uint(x[i]) >> 31);
  }
  const float amax = __uint_as_float(max_of_lanes<16 / kValues>(most));
  const float divisor = kRecipe == Nvfp4Recipe::kSearch ? 7.0f : 6.0f;
  const Coded first = round_e4m3(__fdiv_rn(amax, divisor));
  Quantized best = quantize<kValues, kChooses>(size, first);
  if constexpr (kRecipe == Nvfp4Recipe::kFourOverSix) {
    const Quantized other = quantize<kValues, true>(size, round_e4m3(__fmul_rn(amax, 0.25f)));
    if (other.error < best.error) best = other;
  } else if constexpr (kRecipe == Nvfp4Recipe::kSearch) {
#pragma unroll 1
    for (uint32_t i = 1; i < 8; ++i) {
      const uint32_t code = min(first.code + i, 0x7eu);
      const Quantized other = quantize<kValues, true>(size, Coded{code, e4m3_value(code)});
      if (other.error < best.error) best = other;
    }
  }
  // E2M1 has no NaN: the scale is one, and the codes are what any NaN converts to.
  best.codes = amax != amax ? 0x77777777u : best.codes | signs << 3;
  return best;
}

}  // namespace vidk::nvfp4
