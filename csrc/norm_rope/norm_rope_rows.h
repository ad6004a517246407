// RMSNorm and rotation of one token, for the kernels that do both. Torch-free, one copy per
// instruction set.
#pragma once

#include "rope/rope_angles.h"

namespace vidk {
namespace VIDK_ISA {

// The heads of one token.
struct Heads {
  char* data;
  int64_t stride;

  VIDK_INLINE char* at(int64_t h) const { return data + h * stride; }
};

VIDK_INLINE Heads heads_of(const ByteView& x, int64_t batch, int64_t token) {
  return {x.data + batch * x.batch_stride + token * x.token_stride, x.head_stride};
}

// 1 / sqrt(mean(x^2) + eps) of one token. The order of the sum is fixed, whatever the register's
// width: pair p of a head goes to lane p % 16 of an accumulator for even and one for odd elements;
// pairs past a head's last full 16 have two accumulators of their own.
constexpr int kSumLanes = 16;

template <class Format>
VIDK_INLINE float norm_scale(Heads token, int64_t heads, int64_t pairs, float eps) {
  using T = typename Format::T;
  using F = typename Vec<kLanes>::F;
  constexpr int kParts = kSumLanes / kLanes;
  F even[kParts] = {}, odd[kParts] = {};
  float even_ends[kSumLanes] = {}, odd_ends[kSumLanes] = {};
  for (int64_t h = 0; h < heads; ++h) {
    const T* x = (const T*)token.at(h);
    int64_t full = 0;
    for (; full + kSumLanes <= pairs; full += kSumLanes) {
      for (int i = 0; i < kParts; ++i) {
        const auto t = Format::template load<kLanes>(x + 2 * (full + i * kLanes));
        even[i] += t.even * t.even;
        odd[i] += t.odd * t.odd;
      }
    }
    for_pairs<kLanes>(full, pairs, [&](auto lanes, int64_t p) {
      constexpr int N = lanes();
      using E = typename Vec<N>::F;
      const Pairs<N> t = Format::template load<N>(x + 2 * p);
      store(even_ends + p - full, load<E>(even_ends + p - full) + t.even * t.even);
      store(odd_ends + p - full, load<E>(odd_ends + p - full) + t.odd * t.odd);
    });
  }
  float sum[kSumLanes];
  for (int i = 0; i < kParts; ++i) {
    const int at = i * kLanes;
    store(sum + at, even[i] + odd[i] + (load<F>(even_ends + at) + load<F>(odd_ends + at)));
  }
  for (int n = kSumLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
  }
  const float mean = sum[0] / (float)(heads * pairs * 2);
  return 1.0f / __builtin_sqrtf(mean + eps);
}

template <class Format>
VIDK_INLINE void norm_rope_head(const char* from, const void* weight, float scale,
                                const TokenAngles& angles, int64_t pairs, char* to) {
  using T = typename Format::T;
  const float* cos = angles.cos;
  const float* sin = angles.sin;
  for_pairs<kLanes>(0, pairs, [&](auto lanes, int64_t p) {
    constexpr int N = lanes();
    const Pairs<N> w = Format::template load<N>((const T*)weight + 2 * p);
    Pairs<N> t = Format::template load<N>((const T*)from + 2 * p);
    t = Format::template round<N>({t.even * scale, t.odd * scale});
    t = Format::template round<N>({t.even * w.even, t.odd * w.odd});
    Format::template store<N>((T*)to + 2 * p, rotate<N>(t, cos + p, sin + p));
  });
}

}  // namespace VIDK_ISA
}  // namespace vidk
