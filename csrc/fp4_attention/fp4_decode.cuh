// Codes and scales as bfloat16, exactly: every product of a code and a scale has few enough bits.
//
// The bits of a code, shifted into place, are a tiny bfloat16: E2M1 off by 2^126, E4M3 by 2^120. A
// multiplication by a power of two makes up for it, subnormal numbers included. Torch-free.
#pragma once

#include <cstdint>

#include "common/fp4_layout.h"
#include "common/vector.cuh"

namespace vidk::fp4 {

constexpr uint32_t kTwoTo119 = 0x7b007b00u;  // in both halves
constexpr uint32_t kTwoTo120 = 0x7b807b80u;

// The same number, unknown to the compiler: what follows from it is computed where it is needed,
// instead of before the loop to be kept in registers, of which there are too few.
__device__ inline uint32_t here(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

__device__ inline uint32_t multiplied(uint32_t a, uint32_t b) {
  BFloat16::multiply(&a, &b);
  return a;
}

// E4M3, a code in the low byte of each half, off by 2^120. What looks like 480 is NaN.
__device__ inline uint32_t tiny_e4m3(uint32_t x) {
  const uint32_t magnitude = x & 0x007f007fu;
  const uint32_t nan = (magnitude + 0x00010001u) & 0x00800080u;
  return ((magnitude << 4) | ((x & 0x00800080u) << 8)) + nan * 0xf0u;
}

// Bytes 2 i and 2 i + 1 of a word, one to a half.
__device__ inline uint32_t two_bytes(uint32_t word, int i) {
  return __byte_perm(word, 0, i == 0 ? 0x4140 : 0x4342);
}

// Values 2 i and 2 i + 1 of four E4M3 codes.
__device__ inline uint32_t e4m3_pair(uint32_t word, int i) {
  return multiplied(tiny_e4m3(two_bytes(word, i)), kTwoTo120);
}

// One half of a word in both.
__device__ inline uint32_t both_halves(uint32_t x, int half) {
  return __byte_perm(x, 0, half == 0 ? 0x1010 : 0x3232);
}

// A format says how a row of codes becomes bfloat16, in chunks of eight values: `pair` is what one
// word of a chunk holds in the end. The order of values inside of a chunk is the format's own: a
// dot product does not mind as long as q and k have the same. A unit is 16 bytes of codes.

// E2M1 with an E4M3 scale for each 16. Values are 2^-8 of what they should be, for then the factors
// of all scales are in range.
template <int kDepth_>
struct Nvfp4 {
  static constexpr int kDepth = kDepth_;
  static constexpr int kRowBytes = kDepth / 2;
  static constexpr int kScaleCols = kDepth / 16;
  static constexpr int kChunkWords = 1;
  static constexpr int kUnitChunks = 4;
  static constexpr int kScaleChunks = 2;        // that share a scale
  static constexpr float kProductUnit = 65536;  // what a product of q and k is to be multiplied by

  // Factors of two scales, in the low byte of each half.
  static __device__ uint32_t factors(uint32_t x) {
    return multiplied(multiplied(tiny_e4m3(x), kTwoTo119), kTwoTo119);
  }
  // Codes t and t + 4.
  static __device__ uint32_t pair(const uint32_t* chunk, int t, uint32_t factor) {
    const uint32_t x = chunk[0] >> (4 * t);
    return multiplied(((x & 0x00070007u) << 6) | ((x & 0x00080008u) << 12), factor);
  }
};

// E4M3 with a power of two for each 32.
struct Mxfp8 {
  static constexpr int kDepth = 128;
  static constexpr int kRowBytes = 128;
  static constexpr int kScaleCols = 4;
  static constexpr int kChunkWords = 2;
  static constexpr int kUnitChunks = 2;
  static constexpr int kScaleChunks = 4;
  static constexpr float kProductUnit = 1;

  static __device__ uint32_t factor(uint32_t code) {
    return code == 0 ? 0x0040u : code == 0xffu ? 0x7fffu : code << 7;
  }
  static __device__ uint32_t factors(uint32_t x) {
    return factor(x & 0xffu) | factor(x >> 16 & 0xffu) << 16;
  }
  static __device__ uint32_t pair(const uint32_t* chunk, int t, uint32_t factor) {
    return multiplied(e4m3_pair(t < 2 ? chunk[0] : chunk[1], t % 2), factor);
  }
};

// Byte offset of a scale in the tiles of 128 rows.
__device__ constexpr uint32_t scale_offset(uint32_t row, uint32_t column) {
  return column / 4 * static_cast<uint32_t>(kFp4TileBytes) +
         static_cast<uint32_t>(fp4_scale_offset(row)) + column % 4;
}

}  // namespace vidk::fp4
