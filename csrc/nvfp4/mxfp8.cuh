// MXFP8 arithmetic on blocks of 32 elements that lie across four neighbouring lanes of a warp: E4M3
// codes under a power of two. Device code, torch-free, the bits of the CPU kernel on every
// architecture.
#pragma once

#include <cstdint>

#include "nvfp4/nvfp4.cuh"

namespace vidk::nvfp4 {

// The E4M3 code with its sign; a NaN is 0x7f.
__device__ inline uint32_t e4m3_code(float x) {
  const uint32_t code = round_e4m3(fabsf(x)).code;
  return x != x ? code : code | (__float_as_uint(x) >> 24 & 0x80u);
}

// A magnitude divided by 448 and rounded up to a power of two: the code of E8M0, 255 for a NaN.
__device__ inline uint32_t mxfp8_scale(float amax) {
  const float quotient = __fdiv_rn(amax, 448.0f);
  const uint32_t bits = __float_as_uint(quotient);
  const uint32_t exponent = bits >> 23;
  // A subnormal lies below 2^-126, and below 2^-127 if its fraction is at most half.
  const uint32_t up = (bits & 0x7fffffu) > (exponent == 0 ? 0x400000u : 0u);
  return quotient != quotient ? 255u : min(exponent + up, 254u);
}

__device__ inline float e8m0_value(uint32_t code) {
  return __uint_as_float(code == 255 ? 0x7fc00000u : code == 0 ? 0x400000u : code << 23);
}

struct Mxfp8 {
  uint32_t scale;     // E8M0 code
  uint32_t codes[2];  // a byte an element, the first the lowest
};

// All lanes of the warp take part.
__device__ inline Mxfp8 quantize_mxfp8(const float (&x)[8]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) most = max(most, __float_as_uint(fabsf(x[i])));
  const uint32_t scale = mxfp8_scale(__uint_as_float(max_of_lanes<4>(most)));
  // The reciprocal of a power of two is exact, so a product rounds as the quotient would.
  const float inverse = e8m0_value(scale == 255 ? 255 : 254 - scale);
  Mxfp8 q{scale, {0, 0}};
#pragma unroll
  for (int i = 7; i >= 0; --i) {
    q.codes[i / 4] = q.codes[i / 4] << 8 | e4m3_code(__fmul_rn(x[i], inverse));
  }
  return q;
}

}  // namespace vidk::nvfp4
