// Vectors of (even, odd) element pairs: how they come from memory, become float32 and go back.
// Device code, torch-free.
#pragma once

#include <cstdint>

namespace vidk {

// Loads and stores of kBytes as 32-bit words. Inline PTX, because the compiler splits a struct into
// its members, and for the hint that data read once need not stay in the first-level cache. What is
// loaded must not be written by the same launch.
template <int kBytes>
struct Access;

template <>
struct Access<16> {
  static __device__ void load_once(const char* p, uint32_t* w) {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
        : "l"(p));
  }
  static __device__ void load(const char* p, uint32_t* w) {
    const uint4 v = __ldg(reinterpret_cast<const uint4*>(p));
    w[0] = v.x;
    w[1] = v.y;
    w[2] = v.z;
    w[3] = v.w;
  }
  static __device__ void store(char* p, const uint32_t* w) {
    *reinterpret_cast<uint4*>(p) = make_uint4(w[0], w[1], w[2], w[3]);
  }
};

template <>
struct Access<8> {
  static __device__ void load_once(const char* p, uint32_t* w) {
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "l"(p));
  }
  static __device__ void load(const char* p, uint32_t* w) {
    const uint2 v = __ldg(reinterpret_cast<const uint2*>(p));
    w[0] = v.x;
    w[1] = v.y;
  }
  static __device__ void store(char* p, const uint32_t* w) {
    *reinterpret_cast<uint2*>(p) = make_uint2(w[0], w[1]);
  }
};

template <>
struct Access<4> {
  static __device__ void load(const char* p, uint32_t* w) {
    *w = __ldg(reinterpret_cast<const uint32_t*>(p));
  }
  static __device__ void load_once(const char* p, uint32_t* w) { load(p, w); }
  static __device__ void store(char* p, const uint32_t* w) { *reinterpret_cast<uint32_t*>(p) = *w; }
};

// Two halves of a word that lies across a 4-byte boundary.
template <>
struct Access<2> {
  static __device__ void load(const char* p, uint32_t* w) {
    const uint16_t* half = reinterpret_cast<const uint16_t*>(p);
    *w = __ldg(half) | static_cast<uint32_t>(__ldg(half + 1)) << 16;
  }
  static __device__ void load_once(const char* p, uint32_t* w) { load(p, w); }
  static __device__ void store(char* p, const uint32_t* w) {
    uint16_t* half = reinterpret_cast<uint16_t*>(p);
    half[0] = static_cast<uint16_t>(*w);
    half[1] = static_cast<uint16_t>(*w >> 16);
  }
};

// The element formats. A pair is one or two words; conversions round to nearest even. A product of
// 16-bit numbers is exact in float32, so rounding it at once, in pairs, gives the very same bits.
struct BFloat16 {
  static constexpr int kWords = 1;
  static __device__ float2 unpack(const uint32_t* w) {
    return make_float2(__uint_as_float(*w << 16), __uint_as_float(*w & 0xffff0000u));
  }
  static __device__ void pack(float2 t, uint32_t* w) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*w) : "f"(t.y), "f"(t.x));
  }
  static __device__ void multiply(uint32_t* a, const uint32_t* b) {
    // Minus zero leaves every product as it is; a plain product came only with sm_90.
    asm("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(*a) : "r"(*b), "r"(0x80008000u));
  }
};

struct Float16 {
  static constexpr int kWords = 1;
  static __device__ float2 unpack(const uint32_t* w) {
    float2 t;
    asm("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %2; cvt.f32.f16 %0, lo; cvt.f32.f16 %1, hi; }"
        : "=f"(t.x), "=f"(t.y)
        : "r"(*w));
    return t;
  }
  static __device__ void pack(float2 t, uint32_t* w) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*w) : "f"(t.y), "f"(t.x));
  }
  static __device__ void multiply(uint32_t* a, const uint32_t* b) {
    asm("mul.rn.f16x2 %0, %0, %1;" : "+r"(*a) : "r"(*b));
  }
};

struct Float32 {
  static constexpr int kWords = 2;
  static __device__ float2 unpack(const uint32_t* w) {
    return make_float2(__uint_as_float(w[0]), __uint_as_float(w[1]));
  }
  static __device__ void pack(float2 t, uint32_t* w) {
    w[0] = __float_as_uint(t.x);
    w[1] = __float_as_uint(t.y);
  }
  static __device__ void multiply(uint32_t* a, const uint32_t* b) {
    const float2 s = unpack(a);
    const float2 t = unpack(b);
    pack(make_float2(__fmul_rn(s.x, t.x), __fmul_rn(s.y, t.y)), a);
  }
};

// As many pairs as one access holds, and at least one.
template <class Format_, int kAccess>
struct Vector {
  using Format = Format_;
  static constexpr int kPairBytes = 4 * Format::kWords;
  static constexpr int kBytes = kAccess > kPairBytes ? kAccess : kPairBytes;
  static constexpr int kPairs = kBytes / kPairBytes;
  // Two 2-byte accesses make a word, so they step as one.
  static constexpr int kStep = kAccess > 4 ? kAccess : 4;

  uint32_t word[kBytes / 4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kBytes / 4; ++i) word[i] = 0;
  }
  __device__ void load_once(const char* p) {
#pragma unroll
    for (int at = 0; at < kBytes; at += kStep) Access<kAccess>::load_once(p + at, word + at / 4);
  }
  __device__ void load(const char* p) {
#pragma unroll
    for (int at = 0; at < kBytes; at += kStep) Access<kAccess>::load(p + at, word + at / 4);
  }
  __device__ void store(char* p) const {
#pragma unroll
    for (int at = 0; at < kBytes; at += kStep) Access<kAccess>::store(p + at, word + at / 4);
  }
  // Shared memory is aligned as the vector is.
  __device__ void store_shared(char* p) const {
    static_assert(kBytes == 16);
    *reinterpret_cast<uint4*>(p) = make_uint4(word[0], word[1], word[2], word[3]);
  }
  __device__ void load_shared(const char* p) {
    static_assert(kBytes == 16);
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    word[0] = v.x;
    word[1] = v.y;
    word[2] = v.z;
    word[3] = v.w;
  }
  __device__ float2 pair(int i) const { return Format::unpack(word + i * Format::kWords); }
  __device__ void multiply_pair(int i, const Vector& by) {
    Format::multiply(word + i * Format::kWords, by.word + i * Format::kWords);
  }
  __device__ void set_pair(int i, float2 t) { Format::pack(t, word + i * Format::kWords); }
};

// N floats of shared memory, aligned to their own size, in one access.
template <int N>
__device__ void load_shared(const float* p, float (&value)[N]) {
  static_assert(N == 1 || N == 2 || N == 4);
  if constexpr (N == 4) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    value[0] = v.x;
    value[1] = v.y;
    value[2] = v.z;
    value[3] = v.w;
  } else if constexpr (N == 2) {
    const float2 v = *reinterpret_cast<const float2*>(p);
    value[0] = v.x;
    value[1] = v.y;
  } else {
    value[0] = *p;
  }
}

}  // namespace vidk
