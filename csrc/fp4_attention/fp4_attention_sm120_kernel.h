// The tiles and parameters of the kernels with block-scaled mma.sync, for the plan and the kernels.
#pragma once

#include <cstdint>

#include "common/rows.h"

namespace vidk {

constexpr int kFp4Sm120Warps = 8;  // of 16 rows of q each: together a tile of scales
constexpr int kFp4Sm120Keys = 64;  // of a step
constexpr int kFp4Sm120Stages = 3;
constexpr int kFp4Sm120MeanTiles = 8;  // whose products with q one instruction has

struct Fp4Sm120Params {
  const uint8_t* q_codes;
  const uint8_t* q_scales;
  const uint8_t* k_codes;
  const uint8_t* k_scales;
  Rows q;                 // bfloat16; not read without k_mean
  const uint8_t* k_mean;  // null: keys have no means
  Rows v;
  uint8_t* out;
  float* lse;
  const int32_t* kv_len;
  int32_t tokens;
  int32_t capacity;
  int32_t frame_tokens;
  int32_t k_tiles;  // tiles of scales of a head
  float scale;
};

// Where in shared memory what is. `row_bytes` are codes of a key; scales of a key tile stay until
// its last step, so there may be as many of them as there are stages. Means are read once, at the
// first step of their tiles, long before the next ones come.
struct Fp4Sm120Shared {
  int key_stage, value_stage, scale_slot;  // bytes of one
  int keys, values, scales, means, total;  // offsets, and where it ends
};

constexpr Fp4Sm120Shared fp4_sm120_shared(int row_bytes, int scale_cols, int value_bytes) {
  Fp4Sm120Shared s{};
  s.key_stage = kFp4Sm120Keys * row_bytes;
  s.value_stage = kFp4Sm120Keys * 128 * value_bytes;
  s.scale_slot = 128 * scale_cols;
  s.values = kFp4Sm120Stages * s.key_stage;
  s.scales = s.values + kFp4Sm120Stages * s.value_stage;
  s.means = s.scales + kFp4Sm120Stages * s.scale_slot;
  s.total = s.means + kFp4Sm120MeanTiles * 256;
  return s;
}

}  // namespace vidk
