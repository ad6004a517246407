// Rows of codes and of activations as float32.
#pragma once

#include <cmath>

#include "common/simd_formats.h"
#include "fp4_attention/fp4_attention_plan.h"

namespace vidk {
namespace VIDK_ISA {

// What a byte stands for: an E4M3 number, an E8M0 scale, two E2M1 numbers.
struct ByteTables {
  float e4m3[256], e8m0[256], e2m1[256][2];

  ByteTables() {
    const float magnitude[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int i = 0; i < 256; ++i) {
      const int exponent = i >> 3 & 15, mantissa = i & 7;
      const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                       : std::ldexp(8.0f + mantissa, exponent - 10);
      e4m3[i] = (i & 0x7f) == 0x7f ? NAN : i < 128 ? size : -size;
      e8m0[i] = i == 255 ? NAN : std::ldexp(1.0f, i - 127);
      for (int j = 0; j < 2; ++j) {
        const int code = i >> 4 * j & 15;
        e2m1[i][j] = code < 8 ? magnitude[code] : -magnitude[code - 8];
      }
    }
  }
};

inline const ByteTables& byte_tables() {
  static const ByteTables tables;
  return tables;
}

// Where a scale of a row of a tile is, in tiles that follow each other for every four columns.
VIDK_INLINE int64_t scale_at(int64_t row, int64_t column) {
  return column / 4 * kFp4TileBytes + fp4_scale_offset(row) + column % 4;
}

// Decodes a row of codes whose scales are row `row` of a tile.
inline void decode_row(const Fp4AttentionArgs& args, const uint8_t* codes, const uint8_t* tile,
                       int64_t row, float* out) {
  const ByteTables& tables = byte_tables();
  if (args.mxfp8) {
    for (int64_t c = 0; c < args.scale_cols; ++c, codes += 32, out += 32) {
      const float scale = tables.e8m0[tile[scale_at(row, c)]];
      for (int i = 0; i < 32; ++i) out[i] = tables.e4m3[codes[i]] * scale;
    }
    return;
  }
  using Pair = Vec<2>::F;
  for (int64_t c = 0; c < args.scale_cols; ++c, codes += 8, out += 16) {
    const float scale = tables.e4m3[tile[scale_at(row, c)]];
    for (int i = 0; i < 8; ++i) store(out + 2 * i, load<Pair>(tables.e2m1[codes[i]]) * scale);
  }
}

template <class Format>
void widen_row(const void* from, int64_t dim, float* out) {
  const auto* p = (const typename Format::T*)from;
  for_pairs<kLanes>(0, dim / 2, [&](auto lanes, int64_t pair) {
    constexpr int N = lanes();
    Float32::store<N>(out + 2 * pair, Format::template load<N>(p + 2 * pair));
  });
}

template <class Format>
void narrow_row(const float* from, int64_t dim, void* out) {
  auto* p = (typename Format::T*)out;
  for_pairs<kLanes>(0, dim / 2, [&](auto lanes, int64_t pair) {
    constexpr int N = lanes();
    Format::template store<N>(p + 2 * pair, Float32::load<N>(from + 2 * pair));
  });
}

inline void widen_e4m3_row(const void* from, int64_t dim, float* out) {
  const float* table = byte_tables().e4m3;
  for (int64_t d = 0; d < dim; ++d) out[d] = table[((const uint8_t*)from)[d]];
}

}  // namespace VIDK_ISA
}  // namespace vidk
