// Vector types for the kernels that are compiled once per instruction set (`*_simd.cpp`).
//
// Everything lives in a namespace named after the instruction set, so that no two variants share an
// inline function: the linker would keep one of them, perhaps one that this machine cannot run.
// All variants give the same bits; only a NaN made from two NaNs may carry either payload.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifndef VIDK_ISA
#error "VIDK_ISA must name the instruction set: compile this file through the build's ISA list"
#endif
#ifdef __FAST_MATH__
#error "the kernels promise exact rounding and NaNs: compile without -ffast-math"
#endif

#define VIDK_INLINE inline __attribute__((always_inline))

namespace vidk {
namespace VIDK_ISA {

// Float32 lanes of one register. Wider vectors than the machine has are legal, but GCC passes them
// through memory.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int N>
struct Vec {
  typedef float F __attribute__((vector_size(4 * N)));
  typedef int32_t I __attribute__((vector_size(4 * N)));
  typedef uint32_t U __attribute__((vector_size(4 * N)));
  typedef uint16_t H __attribute__((vector_size(2 * N)));
};

// Tensors are aligned to their element only, hence memcpy instead of a dereference.
template <class V>
VIDK_INLINE V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
VIDK_INLINE void store(void* p, V v) {
  memcpy(p, &v, sizeof(V));
}

// The address need not be valid: asking for memory ahead of a loop may run past a tensor's end.
VIDK_INLINE void prefetch(const char* p, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
}

template <class U>
VIDK_INLINE U select(U mask, U yes, U no) {
  return (mask & yes) | (~mask & no);
}

// Replaces every NaN by the usual one, whose lower bits are zero.
template <int N>
VIDK_INLINE typename Vec<N>::F plain_nan(typename Vec<N>::F f) {
  using U = typename Vec<N>::U;
  return (typename Vec<N>::F)select((U)(f == f), (U)f, U{} + 0x7fc00000u);
}

// N (even, odd) pairs of neighbouring elements, in float32. With the two apart, a rotation needs no
// shuffles.
template <int N>
struct Pairs {
  typename Vec<N>::F even;
  typename Vec<N>::F odd;
};

// Pairs from 2 N neighbours, and back.
#if defined(__clang__)
#define VIDK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define VIDK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, typename Vec<N>::I{__VA_ARGS__})
#endif

template <int N>
VIDK_INLINE Pairs<N> split(typename Vec<N>::F a, typename Vec<N>::F b) {
  if constexpr (N == 16) {
    return {VIDK_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            VIDK_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
  } else if constexpr (N == 8) {
    // Halves first: AVX2 has no shuffle that takes from two registers across their halves.
    const auto low = VIDK_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    const auto high = VIDK_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    return {VIDK_SHUFFLE(low, high, 0, 2, 8, 10, 4, 6, 12, 14),
            VIDK_SHUFFLE(low, high, 1, 3, 9, 11, 5, 7, 13, 15)};
  } else if constexpr (N == 4) {
    return {VIDK_SHUFFLE(a, b, 0, 2, 4, 6), VIDK_SHUFFLE(a, b, 1, 3, 5, 7)};
  } else if constexpr (N == 2) {
    return {VIDK_SHUFFLE(a, b, 0, 2), VIDK_SHUFFLE(a, b, 1, 3)};
  } else {
    return {a, b};
  }
}

template <int N>
VIDK_INLINE void join(Pairs<N> t, typename Vec<N>::F* a, typename Vec<N>::F* b) {
  if constexpr (N == 16) {
    *a = VIDK_SHUFFLE(t.even, t.odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *b = VIDK_SHUFFLE(t.even, t.odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (N == 8) {
    const auto low = VIDK_SHUFFLE(t.even, t.odd, 0, 8, 1, 9, 4, 12, 5, 13);
    const auto high = VIDK_SHUFFLE(t.even, t.odd, 2, 10, 3, 11, 6, 14, 7, 15);
    *a = VIDK_SHUFFLE(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
    *b = VIDK_SHUFFLE(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
  } else if constexpr (N == 4) {
    *a = VIDK_SHUFFLE(t.even, t.odd, 0, 4, 1, 5);
    *b = VIDK_SHUFFLE(t.even, t.odd, 2, 6, 3, 7);
  } else if constexpr (N == 2) {
    *a = VIDK_SHUFFLE(t.even, t.odd, 0, 2);
    *b = VIDK_SHUFFLE(t.even, t.odd, 1, 3);
  } else {
    *a = t.even;
    *b = t.odd;
  }
}
#undef VIDK_SHUFFLE

// Calls f(integral_constant<N>, p) for the pairs [p, end) in steps of N = the register's width,
// then of narrower powers of two, so that a ragged end costs a few calls and reads nothing past it.
template <int N, class Fn>
VIDK_INLINE void for_pairs(int64_t p, int64_t end, Fn f) {
  for (; p + N <= end; p += N) f(std::integral_constant<int, N>{}, p);
  if constexpr (N > 1) for_pairs<N / 2>(p, end, f);
}

}  // namespace VIDK_ISA
}  // namespace vidk
