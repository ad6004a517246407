// MXFP8 arithmetic: E4M3 codes under a power of two per 32 elements. Torch-free, one copy per
// instruction set.
#pragma once

#include "nvfp4/nvfp4_blocks.h"

namespace vidk {
namespace VIDK_ISA {

constexpr int64_t kMxfp8Block = 32;

// E4M3 codes with their signs, one in each lane; a NaN is 0x7f.
template <int N>
VIDK_INLINE typename Vec<N>::U e4m3_codes(typename Vec<N>::F x) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const U code = round_e4m3<N>((F)((U)x & 0x7fffffffu)).code;
  return code | ((U)x >> 24 & 0x80u & (U)(x == x));
}

// A magnitude divided by 448 and rounded up to a power of two: the code of E8M0, 255 for a NaN.
VIDK_INLINE uint32_t mxfp8_scale(float amax) {
  const float quotient = amax / 448.0f;
  uint32_t bits;
  memcpy(&bits, &quotient, 4);
  if (quotient != quotient) return 255;
  const uint32_t exponent = bits >> 23;
  const uint32_t fraction = bits & 0x7fffffu;
  // A subnormal lies below 2^-126, and below 2^-127 if its fraction is at most half.
  const uint32_t code = exponent + (fraction > (exponent == 0 ? 0x400000u : 0u));
  return code < 254 ? code : 254;
}

VIDK_INLINE float e8m0_value(uint32_t code) {
  const uint32_t bits = code == 255 ? 0x7fc00000u : code == 0 ? 0x400000u : code << 23;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Quantises one block of 32: its codes to `codes`, its scale's code is returned.
VIDK_INLINE uint8_t mxfp8_block(const float* x, uint8_t* codes) {
  using F = typename Vec<kLanes>::F;
  using I = typename Vec<kLanes>::I;
  using U = typename Vec<kLanes>::U;
  I most{};
  for (int i = 0; i < kMxfp8Block; i += kLanes) {
    most = larger(most, (I)((U)load<F>(x + i) & 0x7fffffffu));
  }
  // As integers, a NaN is larger than any number.
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = largest < most[i] ? most[i] : largest;
  float amax;
  memcpy(&amax, &largest, 4);
  const uint32_t scale = mxfp8_scale(amax);
  // The reciprocal of a power of two is exact, so a product rounds as the quotient would.
  const float inverse = e8m0_value(scale == 255 ? 255 : 254 - scale);
  for (int i = 0; i < kMxfp8Block; i += kLanes) {
    const U code = e4m3_codes<kLanes>(load<F>(x + i) * inverse);
    store(codes + i, __builtin_convertvector(code, typename Bytes<kLanes>::B));
  }
  return (uint8_t)scale;
}

}  // namespace VIDK_ISA
}  // namespace vidk
