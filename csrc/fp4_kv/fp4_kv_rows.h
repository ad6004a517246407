// Quantising one token's heads, wherever its values come from and its codes go. Torch-free, one
// copy per instruction set.
#pragma once

#include "fp4_kv/fp4_kv_simd.h"
#include "nvfp4/mxfp8_blocks.h"

namespace vidk {
namespace VIDK_ISA {

// Dense E2M1 codes and E4M3 scales of `blocks` blocks of 16.
template <Nvfp4Recipe kRecipe>
VIDK_INLINE void quantize_blocks(const float* x, int64_t blocks, uint8_t* codes, uint8_t* scales) {
  for_pairs<kLanes>(0, blocks, [&](auto lanes, int64_t b) {
    constexpr int N = lanes();
    store_blocks<N>(quantize<N, kRecipe>(load_blocks<N>(x + b * kNvfp4Block)),
                    codes + b * (kNvfp4Block / 2), scales + b);
  });
}

inline void quantize_values(Fp4Scale scale, const float* x, int64_t count, uint8_t* codes,
                            uint8_t* scales) {
  switch (scale) {
    case Fp4Scale::kPlain:
      return quantize_blocks<Nvfp4Recipe::kPlain>(x, count / kNvfp4Block, codes, scales);
    case Fp4Scale::kFourOverSix:
      return quantize_blocks<Nvfp4Recipe::kFourOverSix>(x, count / kNvfp4Block, codes, scales);
    case Fp4Scale::kMxfp8:
      for (int64_t b = 0; b < count / kMxfp8Block; ++b) {
        scales[b] = mxfp8_block(x + b * kMxfp8Block, codes + b * kMxfp8Block);
      }
  }
}

VIDK_INLINE float e4m3_float(uint8_t code) {
  const uint32_t bits = code == 0x7f ? 0x7fc00000u : ((uint32_t)code << 20) + (120u << 23);
  float value;
  memcpy(&value, &bits, 4);
  return code < 8 ? (float)code * 0x1p-9f : value;
}

// What rounding left of the first `count` values: x minus what its codes stand for.
VIDK_INLINE void residuals(const float* x, const uint8_t* codes, const uint8_t* scales,
                           int64_t count, float* out) {
  static constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                        -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
  for (int64_t b = 0; b < count / kNvfp4Block; ++b) {
    const float scale = e4m3_float(scales[b]);
    for (int64_t i = b * kNvfp4Block; i < (b + 1) * kNvfp4Block; i += 2) {
      const uint8_t pair = codes[i / 2];
      out[i] = x[i] - kValues[pair & 15] * scale;
      out[i + 1] = x[i + 1] - kValues[pair >> 4] * scale;
    }
  }
}

// The columns that carry rounding errors: what q has there meets the other part in k.
VIDK_INLINE void join_parts(const uint8_t* high, const uint8_t* low, int64_t bytes, bool is_k,
                            uint8_t* to) {
  memcpy(to, is_k ? low : high, bytes);
  memcpy(to + bytes, is_k ? high : low, bytes);
}

// Room for all heads of one token; the widest codes are a byte a channel.
struct TokenCodes {
  float* low_values;  // [H, T]
  uint8_t* high;      // [H, D] in codes
  uint8_t* high_scales;
  uint8_t* low;
  uint8_t* low_scales;

  TokenCodes(float* buffer, int64_t heads, int64_t dim)
      : low_values(buffer),
        high((uint8_t*)(buffer + heads * dim)),
        high_scales(high + heads * dim),
        low(high_scales + heads * dim),
        low_scales(low + heads * dim) {}
};

// Quantises x, [H, D] of one token, to row `row` of `to`; `row` counts all rows of all slots.
inline void quantize_token(const Fp4Recipe& recipe, const float* x, int64_t heads, int64_t dim,
                           const TokenCodes& t, bool is_k, const Fp4Rows& to, int64_t batch,
                           int64_t row) {
  const int64_t cross = recipe.cross;
  quantize_values(recipe.scale, x, heads * dim, t.high, t.high_scales);
  const int64_t block = recipe.block();
  if (cross > 0) {
    for (int64_t h = 0; h < heads; ++h) {
      residuals(x + h * dim, t.high + h * dim / 2, t.high_scales + h * dim / block, cross,
                t.low_values + h * cross);
    }
    quantize_values(recipe.scale, t.low_values, heads * cross, t.low, t.low_scales);
  }
  const int64_t row_bytes = recipe.row_bytes(dim);
  const int64_t columns = recipe.row_scales(dim);
  const int64_t all = recipe.bytes_of(dim), leading = recipe.bytes_of(cross);
  const int64_t tiles = fp4_tiles(to.rows);
  const int64_t tile = row / to.rows * tiles + row % to.rows / kFp4TileRows;
  const int64_t at = fp4_scale_offset(row % to.rows % kFp4TileRows);
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t plane = batch * heads + h;
    uint8_t* codes = to.codes + (plane * to.slots * to.rows + row) * row_bytes;
    memcpy(codes, t.high + h * all, all);
    uint8_t* tiles_of_row =
        to.scales + (plane * to.slots * tiles + tile) * (columns / 4) * kFp4TileBytes + at;
    const uint8_t* high = t.high_scales + h * dim / block;
    for (int64_t c = 0; c < dim / block; c += 4, tiles_of_row += kFp4TileBytes) {
      memcpy(tiles_of_row, high + c, 4);
    }
    if (cross == 0) continue;
    join_parts(codes, t.low + h * leading, leading, is_k, codes + all);
    const int64_t more = cross / block;
    uint8_t extra[2 * kFp4MaxCross / kNvfp4Block];
    join_parts(high, t.low_scales + h * more, more, is_k, extra);
    for (int64_t c = 0; c < 2 * more; c += 4, tiles_of_row += kFp4TileBytes) {
      memcpy(tiles_of_row, extra + c, 4);
    }
  }
}

}  // namespace VIDK_ISA
}  // namespace vidk
