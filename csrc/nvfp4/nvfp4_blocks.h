// NVFP4 arithmetic on N blocks of 16 elements at once, one block a lane. Torch-free, one copy per
// instruction set. Nothing crosses lanes once the blocks are transposed, so that a block's maximum,
// scale and error cost no more than an element each.
#pragma once

#include "common/simd_formats.h"
#include "nvfp4/nvfp4_recipe.h"

namespace vidk {
namespace VIDK_ISA {

template <class V>
VIDK_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

template <class V>
VIDK_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

// Sixteen magnitudes of each of N blocks as (even, odd) pairs, and the signs where the codes have
// theirs: bits 3 and 7 of byte i for pair i, in two words of four bytes.
template <int N>
struct Blocks {
  Pairs<N> pair[8];
  typename Vec<N>::U sign[2];
};

// Brings `kCount` vectors of neighbouring words into the order in which vector j holds word j of
// each block: each round sorts by one more bit of the word's index.
template <int N, int kCount>
VIDK_INLINE void transpose(typename Vec<N>::F* v) {
  if constexpr (kCount > 1) {
    typename Vec<N>::F sorted[kCount];
    for (int i = 0; i < kCount / 2; ++i) {
      const Pairs<N> t = split<N>(v[2 * i], v[2 * i + 1]);
      sorted[i] = t.even;
      sorted[kCount / 2 + i] = t.odd;
    }
    transpose<N, kCount / 2>(sorted);
    transpose<N, kCount / 2>(sorted + kCount / 2);
    for (int i = 0; i < kCount / 2; ++i) {
      v[2 * i] = sorted[i];
      v[2 * i + 1] = sorted[kCount / 2 + i];
    }
  }
}

template <int N>
VIDK_INLINE void set_pair(Blocks<N>& blocks, int i, typename Vec<N>::U even,
                          typename Vec<N>::U odd) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const U sign = (even >> 28 & 0x8u) | (odd >> 24 & 0x80u);
  blocks.sign[i / 4] |= sign << 8 * (i % 4);
  blocks.pair[i] = {(F)(even & 0x7fffffffu), (F)(odd & 0x7fffffffu)};
}

template <int N>
VIDK_INLINE Blocks<N> load_blocks(const float* p) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  F v[16];
  for (int i = 0; i < 16; ++i) v[i] = load<F>(p + i * N);
  transpose<N, 16>(v);
  Blocks<N> blocks{};
  for (int i = 0; i < 8; ++i) set_pair<N>(blocks, i, (U)v[2 * i], (U)v[2 * i + 1]);
  return blocks;
}

template <int N>
VIDK_INLINE Blocks<N> load_bf16_blocks(const uint16_t* p) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  F v[8];
  for (int i = 0; i < 8; ++i) v[i] = load<F>(p + 2 * i * N);
  transpose<N, 8>(v);
  Blocks<N> blocks{};
  for (int i = 0; i < 8; ++i) set_pair<N>(blocks, i, (U)v[i] << 16, (U)v[i] & 0xffff0000u);
  return blocks;
}

// The largest magnitude; a NaN counts as larger than any number.
template <int N>
VIDK_INLINE typename Vec<N>::F largest(const Blocks<N>& blocks) {
  using F = typename Vec<N>::F;
  using I = typename Vec<N>::I;
  I most{};
  for (const Pairs<N>& t : blocks.pair) most = larger(most, larger((I)t.even, (I)t.odd));
  return (F)most;
}

// A number of a small format: its code, without sign, and its value.
template <int N>
struct Coded {
  typename Vec<N>::U code;
  typename Vec<N>::F value;
};

// Rounds magnitudes up to `limit` to nearest even, in a format of kMantissa bits whose smallest
// normal number is 2^kMinExponent: adding a number that is large enough leaves the sum's last bit
// worth a step. A NaN rounds as `limit` does.
template <int N, int kMantissa, int kMinExponent>
VIDK_INLINE Coded<N> round_magnitude(typename Vec<N>::F x, float limit) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  constexpr uint32_t kFirst = (127u + kMinExponent) << 23;
  constexpr uint32_t kAdd = ((23u - kMantissa) << 23) + (1u << 22);
  uint32_t limit_bits;
  memcpy(&limit_bits, &limit, 4);
  const U bits = smaller((U)x, U{} + limit_bits);
  const U exponent = larger(bits & 0x7f800000u, U{} + kFirst);
  const U big = exponent + kAdd;
  const F sum = (F)bits + (F)big;
  const U code = ((U)sum - big) + ((exponent - kFirst) >> (23 - kMantissa));
  return {code, sum - (F)big};
}

// E2M1, saturating at 6. The large number also counts the steps below its own range, so that the
// code is in the lowest three bits; bits above them are rubbish. A table by the exponent holds it,
// where the machine looks up lanes; magnitudes below its range round to zero as its first does.
template <int N>
VIDK_INLINE Coded<N> round_e2m1(typename Vec<N>::F x) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  constexpr float kBelowTwo = 0x1.8p22f, kBelowFour = 0x1.8p23f + 2, kBelowEight = 0x1.8p24f + 8;
  const U bits = smaller((U)x, (U)(F{} + 6.0f));
  F big;
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m512 table = _mm512_setr_ps(
        kBelowFour, kBelowEight, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo,
        kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo, kBelowTwo);
    const U in_range = larger(bits, (U)(F{} + 0x1p-5f));
    big = (F)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)(in_range >> 23), table);
    const F sum = (F)in_range + big;
    return {(U)sum, sum - big};
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) {
    const __m256 table = _mm256_setr_ps(kBelowFour, kBelowEight, kBelowTwo, kBelowTwo, kBelowTwo,
                                        kBelowTwo, kBelowTwo, kBelowTwo);
    const U in_range = larger(bits, (U)(F{} + 0x1p-5f));
    big = (F)_mm256_permutevar8x32_ps(table, (__m256i)(in_range >> 23));
    const F sum = (F)in_range + big;
    return {(U)sum, sum - big};
  }
#endif
  const U from_four = (U)(bits >= 0x40800000u);
  const U from_two = (U)(bits >= 0x40000000u);
  big = (F)select(from_four, (U)(F{} + kBelowEight),
                  select(from_two, (U)(F{} + kBelowFour), (U)(F{} + kBelowTwo)));
  const F sum = (F)bits + big;
  return {(U)sum, sum - big};
}

// A NaN stays one.
template <int N>
VIDK_INLINE Coded<N> round_e4m3(typename Vec<N>::F x) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const Coded<N> rounded = round_magnitude<N, 3, -6>(x, 448.0f);
  const U is_nan = (U)(x != x);
  return {select(is_nan, U{} + 0x7fu, rounded.code),
          (F)select(is_nan, U{} + 0x7fc00000u, (U)rounded.value)};
}

template <int N>
VIDK_INLINE typename Vec<N>::F e4m3_value(typename Vec<N>::U code) {
  using F = typename Vec<N>::F;
  using I = typename Vec<N>::I;
  using U = typename Vec<N>::U;
  const U subnormal = (U)(__builtin_convertvector((I)code, F) * 0x1p-9f);
  return (F)select((U)(code < 8u), subnormal, (code << 20) + (120u << 23));
}

// Blocks under one choice of scales.
template <int N>
struct Quantized {
  typename Vec<N>::U scale;    // E4M3 code
  typename Vec<N>::U word[2];  // codes without signs
  typename Vec<N>::F error;    // sum of squares
};

template <int N>
VIDK_INLINE Quantized<N> quantize(const Blocks<N>& blocks, Coded<N> scale) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const F one = F{} + 1.0f;
  const F inverse = (F)((U)(one / scale.value) & (U)(scale.value != 0.0f));
  Quantized<N> q{scale.code, {}, {}};
  F square[8];
  for (int i = 0; i < 8; ++i) {
    const Pairs<N> x = blocks.pair[i];
    const Coded<N> even = round_e2m1<N>(x.even * inverse);
    const Coded<N> odd = round_e2m1<N>(x.odd * inverse);
    const U codes = (even.code & 0x7u) | (odd.code << 4 & 0x70u);
    q.word[i / 4] |= codes << 8 * (i % 4);
    const F off_even = x.even - even.value * scale.value;
    const F off_odd = x.odd - odd.value * scale.value;
    square[i] = off_even * off_even + off_odd * off_odd;
  }
  q.error = ((square[0] + square[1]) + (square[2] + square[3])) +
            ((square[4] + square[5]) + (square[6] + square[7]));
  return q;
}

template <int N>
VIDK_INLINE void keep_better(Quantized<N>& best, const Quantized<N>& other) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const U is_better = (U)(other.error < best.error);
  best.scale = select(is_better, other.scale, best.scale);
  for (int i = 0; i < 2; ++i) best.word[i] = select(is_better, other.word[i], best.word[i]);
  best.error = (F)select(is_better, (U)other.error, (U)best.error);
}

template <int N, Nvfp4Recipe kRecipe>
VIDK_INLINE Quantized<N> quantize(const Blocks<N>& blocks) {
  using F = typename Vec<N>::F;
  using U = typename Vec<N>::U;
  const F amax = largest<N>(blocks);
  constexpr float kDivisor = kRecipe == Nvfp4Recipe::kSearch ? 7.0f : 6.0f;
  const Coded<N> first = round_e4m3<N>(amax / kDivisor);
  Quantized<N> best = quantize<N>(blocks, first);
  if constexpr (kRecipe == Nvfp4Recipe::kFourOverSix) {
    keep_better<N>(best, quantize<N>(blocks, round_e4m3<N>(amax / 4.0f)));
  } else if constexpr (kRecipe == Nvfp4Recipe::kSearch) {
    for (uint32_t i = 1; i < 8; ++i) {
      const U code = smaller(first.code + i, U{} + 0x7eu);
      keep_better<N>(best, quantize<N>(blocks, {code, e4m3_value<N>(code)}));
    }
  }
  // E2M1 has no NaN: the scale is one, and the codes are what any NaN converts to.
  const U is_number = (U)(amax == amax);
  for (int i = 0; i < 2; ++i) best.word[i] |= blocks.sign[i] & is_number;
  return best;
}

template <int N>
struct Bytes {
  typedef uint8_t B __attribute__((vector_size(N)));
};

template <int N>
VIDK_INLINE void store_blocks(const Quantized<N>& q, uint8_t* packed, uint8_t* scales) {
  using F = typename Vec<N>::F;
  F a, b;
  join<N>({(F)q.word[0], (F)q.word[1]}, &a, &b);
  store(packed, a);
  store(packed + 4 * N, b);
  store(scales, __builtin_convertvector(q.scale, typename Bytes<N>::B));
}

}  // namespace VIDK_ISA
}  // namespace vidk
