// The tiles and parameters of the kernels for tcgen05, for the plan and for the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/launch_plan.h"

namespace vidk {

constexpr int kFp4Sm100Rows = 128;      // of a tile of q, and of a tile of keys
constexpr int kFp4Sm100QueryTiles = 2;  // of a thread block
constexpr int kFp4Sm100MeanTiles = 32;  // key tiles whose means are multiplied with q at once
constexpr int kFp4Sm100Threads = kFp4Sm100QueryTiles * 128 + 128;
constexpr int kFp4Sm100Stages = 3;

// How wide a swizzled column of tiles of codes is, in bytes: the largest swizzle that divides a
// row.
constexpr int fp4_sm100_panel(int row_bytes) {
  return row_bytes % 128 == 0 ? 128 : row_bytes % 64 == 0 ? 64 : 32;
}

struct Fp4Sm100Params {
  DeviceTensorMap q_codes, k_codes, q, k_mean, v, out;
  const uint8_t* q_scales;
  const uint8_t* k_scales;
  float* lse;
  const int32_t* kv_len;
  int32_t tokens;
  int32_t capacity;
  int32_t frame_tokens;
  int32_t slot_tiles;  // tiles of scales of a slot
  int32_t head_tiles;  // and of a head
  bool has_means;
  bool negative;     // the scale
  float scale_log2;  // its magnitude, times log2(e)
};

// Where in shared memory what is: bytes from its beginning, which is aligned to kAlign.
struct Fp4Sm100Shared {
  static constexpr int kAlign = 1024;  // of swizzled tiles
  // Bytes of one: a tile of codes, and of values or of q in bfloat16.
  static constexpr int kValues = kFp4Sm100Rows * 256;
  // Of each query tile: what q times the means is, and later half of the output.
  static constexpr int kScratch = kFp4Sm100Rows * 128;

  int codes, scales;                                                           // bytes of a tile
  int q_codes, k_codes, values, scratch, q_scales, k_scales, barriers, total;  // offsets

  constexpr Fp4Sm100Shared(int row_bytes, int scale_cols)
      : codes(kFp4Sm100Rows * row_bytes),
        scales(kFp4Sm100Rows * scale_cols),
        q_codes(0),
        k_codes(q_codes + kFp4Sm100QueryTiles * codes),
        values(k_codes + kFp4Sm100Stages * codes),
        scratch(values + kFp4Sm100Stages * kValues),
        q_scales(scratch + kFp4Sm100QueryTiles * kScratch),
        k_scales(q_scales + kFp4Sm100QueryTiles * scales),
        barriers(k_scales + kFp4Sm100Stages * scales),
        total(barriers + 512) {}
};

}  // namespace vidk
