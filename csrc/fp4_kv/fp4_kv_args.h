// What the kernels of qk_norm_rope_nvfp4_kv_write are told, on every device. Torch-free, no CUDA.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/fp4_layout.h"
#include "common/tensor_view.h"
#include "fp4_kv/fp4_recipe.h"
#include "rope/rope_grid.h"

namespace vidk {

// Rows of codes, and their scales in tiles; slots of `rows` rows each begin a tile of their own.
struct Fp4Rows {
  uint8_t* codes;   // [B, H, slots * rows, row_bytes]
  uint8_t* scales;  // [B, H, slots * tiles, columns / 4, 32, 4, 4]
  int64_t slots;
  int64_t rows;
};

struct Fp4KvArgs {
  Element element;
  Fp4Recipe recipe;
  ByteView q;
  ByteView k;
  ByteView v;
  ByteView q_out;  // without data: recipes without a mean need no q
  Fp4Rows q_rows;
  Fp4Rows k_rows;
  uint16_t* k_mean;  // [B, H, slots * tiles, D] bfloat16, or null
  ByteView v_cache;
  bool v_is_fp8;
  const void* q_weight;  // [H * D], the element type of q
  const void* k_weight;
  float eps;
  const int32_t* frame_slot;
  const int32_t* perm;  // [H, D], or null
  RopeGrid grid;
};

}  // namespace vidk
