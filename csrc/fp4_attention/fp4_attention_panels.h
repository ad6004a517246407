// Float32 products and exponentials on panels: matrices of kPanel columns, a query each. Keys and
// values are the left operands, so that nothing is ever transposed but q and the result, and no
// sum, maximum or factor of a softmax crosses lanes.
#pragma once

#include "common/simd.h"

#if defined(__FMA__)
#include <immintrin.h>
#endif

namespace vidk {
namespace VIDK_ISA {

constexpr int kPanelVectors = 3;
constexpr int kPanel = kPanelVectors * kLanes;
// Rows whose sums are in registers at once, next to a row of the right operand.
#if defined(__AVX512F__)
constexpr int kPanelRows = 8;
#else
constexpr int kPanelRows = 4;
#endif

using PanelF = Vec<kLanes>::F;
using PanelU = Vec<kLanes>::U;
using PanelI = Vec<kLanes>::I;

// A vector of x in every lane. Subtracting zero changes no number and costs nothing, unlike adding.
VIDK_INLINE PanelF every_lane(float x) { return x - PanelF{}; }

// Fused where the machine has it: the build switches contraction off, which would halve the speed.
VIDK_INLINE PanelF multiply_add(PanelF a, PanelF b, PanelF c) {
#if defined(__AVX512F__)
  return (PanelF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (PanelF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// c = a b, or c += a b: a has `rows` rows, a multiple of kPanelRows, and `depth` columns; b and c
// are panels. Elements of a are 1 apart down its columns or along its rows, and `stride` the other
// way.
template <bool kAdd, bool kColumns>
void panel_product(int64_t rows, int64_t depth, const float* a, int64_t stride, const float* b,
                   float* c) {
  for (int64_t i = 0; i < rows; i += kPanelRows, c += kPanelRows * kPanel) {
    PanelF sum[kPanelRows][kPanelVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 3
      for (int j = 0; j < kPanelVectors; ++j) {
        sum[r][j] = kAdd ? load<PanelF>(c + r * kPanel + j * kLanes) : PanelF{};
      }
    }
    const float* from = kColumns ? a + i : a + i * stride;
    const float* right = b;
    for (int64_t k = 0; k < depth; ++k, from += kColumns ? stride : 1, right += kPanel) {
      PanelF row[kPanelVectors];
#pragma GCC unroll 3
      for (int j = 0; j < kPanelVectors; ++j) row[j] = load<PanelF>(right + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kPanelRows; ++r) {
        const PanelF left = every_lane(from[kColumns ? r : r * stride]);
#pragma GCC unroll 3
        for (int j = 0; j < kPanelVectors; ++j) sum[r][j] = multiply_add(left, row[j], sum[r][j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
#pragma GCC unroll 3
      for (int j = 0; j < kPanelVectors; ++j) store(c + r * kPanel + j * kLanes, sum[r][j]);
    }
  }
}

// 2^f - 1 on [-0.5, 0.5] as a polynomial without constant, fitted to the relative error of 2^f.
constexpr float kExp2[] = {0x1.62e42ap-1f, 0x1.ebf9bcp-3f, 0x1.c6b752p-5f, 0x1.3cea88p-7f,
                           0x1.5bba14p-10f};

// 2^x for x of at most about 0, with a relative error of 2e-7; what is below 2^-126 becomes that.
VIDK_INLINE PanelF exp2_of(PanelF x) {
  x = x < -126.0f ? every_lane(-126.0f) : x;  // a NaN stays
  const PanelF shift = every_lane(0x1.8p23f);
  const PanelF rounded = x + shift;  // the integer is in the lowest bits
  const PanelF f = x - (rounded - shift);
  PanelF p = every_lane(kExp2[4]);
  for (int i = 3; i >= 0; --i) p = multiply_add(p, f, every_lane(kExp2[i]));
  p = multiply_add(p, f, every_lane(1.0f));
  return p * (PanelF)(((PanelI)rounded + 127) << 23);
}

}  // namespace VIDK_ISA
}  // namespace vidk
