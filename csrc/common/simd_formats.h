// The element formats of activations: how pairs of them come from memory as float32, and go back.
#pragma once

#include "common/simd.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace vidk {
namespace VIDK_ISA {

// An element format: T is its storage; load and store take N pairs at p; round is what a store
// followed by a load would do.
struct Float32 {
  using T = float;

  template <int N>
  static VIDK_INLINE Pairs<N> load(const T* p) {
    using F = typename Vec<N>::F;
    return split<N>(VIDK_ISA::load<F>(p), VIDK_ISA::load<F>(p + N));
  }
  template <int N>
  static VIDK_INLINE Pairs<N> round(Pairs<N> t) {
    return t;
  }
  template <int N>
  static VIDK_INLINE void store(T* p, Pairs<N> t) {
    typename Vec<N>::F a, b;
    join<N>(t, &a, &b);
    VIDK_ISA::store(p, a);
    VIDK_ISA::store(p + N, b);
  }
};

// bfloat16 is the upper half of a float32, so a 32-bit word that holds a pair splits into two
// floats by a shift and a mask. Little-endian, like every machine torch runs on.
struct BFloat16 {
  using T = uint16_t;
  static constexpr uint32_t kUpper = 0xffff0000u;

  // Round to nearest even in the upper half; the lower half is left as rubbish. There is no NaN
  // branch: bfloat16 inputs and the NaNs that arithmetic makes have a zero lower half, which cannot
  // carry. A NaN from elsewhere (a table) must be made so first: see `plain_nan`.
  template <class U>
  static VIDK_INLINE U rounded(U bits) {
    return bits + 0x7fffu + ((bits >> 16) & 1u);
  }

  template <int N>
  static VIDK_INLINE Pairs<N> load(const T* p) {
    using F = typename Vec<N>::F;
    const auto word = VIDK_ISA::load<typename Vec<N>::U>(p);
    return {(F)(word << 16), (F)(word & kUpper)};
  }
  template <int N>
  static VIDK_INLINE Pairs<N> round(Pairs<N> t) {
    using F = typename Vec<N>::F;
    using U = typename Vec<N>::U;
    return {(F)(rounded((U)t.even) & kUpper), (F)(rounded((U)t.odd) & kUpper)};
  }
  template <int N>
  static VIDK_INLINE void store(T* p, Pairs<N> t) {
    using U = typename Vec<N>::U;
    VIDK_ISA::store(p, (U)((rounded((U)t.even) >> 16) | (rounded((U)t.odd) & kUpper)));
  }
};

struct Float16 {
  using T = uint16_t;

  // Float32 of halves in the low 16 bits of each word; the bits of the F16C instruction. Subnormal
  // halves go through an integer conversion, which no flush-to-zero mode touches.
  template <int N>
  static VIDK_INLINE typename Vec<N>::F widen(typename Vec<N>::U h) {
    using F = typename Vec<N>::F;
    using I = typename Vec<N>::I;
    using U = typename Vec<N>::U;
    const U magnitude = h & 0x7fffu;
    const U normal = (magnitude << 13) + (112u << 23);
    const U subnormal = (U)(__builtin_convertvector((I)magnitude, F) * 0x1p-24f);
    const U quiet = (U)(magnitude > 0x7c00u) & 0x00400000u;
    const U special = (magnitude << 13) | 0x7f800000u | quiet;
    U bits = select((U)(magnitude < 0x0400u), subnormal, normal);
    bits = select((U)(magnitude >= 0x7c00u), special, bits);
    return (F)(bits | (h & 0x8000u) << 16);
  }

  // The inverse, to nearest even, in the low 16 bits of each word.
  template <int N>
  static VIDK_INLINE typename Vec<N>::U narrow(typename Vec<N>::F f) {
    using F = typename Vec<N>::F;
    using U = typename Vec<N>::U;
    const U bits = (U)f;
    const U magnitude = bits & 0x7fffffffu;
    const U normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // In [0.5, 1) a float's last bit is worth a half's smallest subnormal: the addition rounds.
    const U subnormal = (U)((F)magnitude + 0.5f) - 0x3f000000u;
    const U nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    U half = select((U)(magnitude < 0x38800000u), subnormal, normal);
    half = select((U)(magnitude >= 0x47800000u), U{} + 0x7c00u, half);
    half = select((U)(magnitude > 0x7f800000u), nan, half);
    return half | (bits >> 16 & 0x8000u);
  }

#if defined(__AVX512F__)
  // GCC 12 warns of uninitialised registers in the forms without a mask; the code is the same.
  static constexpr __mmask16 kAll = 0xffff;
  static VIDK_INLINE Vec<16>::F to_float(Vec<16>::H h) {
    return (Vec<16>::F)_mm512_maskz_cvtph_ps(kAll, (__m256i)h);
  }
  static VIDK_INLINE Vec<16>::H to_half(Vec<16>::F f) {
    return (Vec<16>::H)_mm512_maskz_cvtps_ph(kAll, (__m512)f, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
#if defined(__F16C__)
  static VIDK_INLINE Vec<8>::F to_float(Vec<8>::H h) {
    return (Vec<8>::F)_mm256_cvtph_ps((__m128i)h);
  }
  static VIDK_INLINE Vec<8>::H to_half(Vec<8>::F f) {
    return (Vec<8>::H)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
  }
  static VIDK_INLINE Vec<4>::F to_float(Vec<4>::H h) {
    return (Vec<4>::F)_mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)&h));
  }
  static VIDK_INLINE Vec<4>::H to_half(Vec<4>::F f) {
    const __m128i h = _mm_cvtps_ph((__m128)f, _MM_FROUND_TO_NEAREST_INT);
    return VIDK_ISA::load<Vec<4>::H>(&h);
  }
#elif defined(__aarch64__)
  typedef __fp16 Fp16x4 __attribute__((vector_size(8)));
  static VIDK_INLINE Vec<4>::F to_float(Vec<4>::H h) {
    return __builtin_convertvector((Fp16x4)h, Vec<4>::F);
  }
  static VIDK_INLINE Vec<4>::H to_half(Vec<4>::F f) {
    return (Vec<4>::H) __builtin_convertvector(f, Fp16x4);
  }
#endif

  // The instructions want neighbours, not pairs: convert first, then split. Narrow ends go the
  // portable way.
#if defined(__F16C__) || defined(__aarch64__)
  static constexpr int kMinConverted = 4;
#else
  static constexpr int kMinConverted = 1 << 30;
#endif
  template <int N>
  static constexpr bool kConverts = N >= kMinConverted;

  template <int N>
  static VIDK_INLINE Pairs<N> load(const T* p) {
    if constexpr (kConverts<N>) {
      using H = typename Vec<N>::H;
      return split<N>(to_float(VIDK_ISA::load<H>(p)), to_float(VIDK_ISA::load<H>(p + N)));
    } else {
      const auto word = VIDK_ISA::load<typename Vec<N>::U>(p);
      return {widen<N>(word & 0xffffu), widen<N>(word >> 16)};
    }
  }
  template <int N>
  static VIDK_INLINE Pairs<N> round(Pairs<N> t) {
    if constexpr (kConverts<N>) {
      return {to_float(to_half(t.even)), to_float(to_half(t.odd))};
    } else {
      return {widen<N>(narrow<N>(t.even)), widen<N>(narrow<N>(t.odd))};
    }
  }
  template <int N>
  static VIDK_INLINE void store(T* p, Pairs<N> t) {
    if constexpr (kConverts<N>) {
      typename Vec<N>::F a, b;
      join<N>(t, &a, &b);
      VIDK_ISA::store(p, to_half(a));
      VIDK_ISA::store(p + N, to_half(b));
    } else {
      VIDK_ISA::store(p, (typename Vec<N>::U)(narrow<N>(t.even) | narrow<N>(t.odd) << 16));
    }
  }
};

}  // namespace VIDK_ISA
}  // namespace vidk
