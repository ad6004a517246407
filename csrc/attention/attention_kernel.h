// The parameters of attention's fall-back kernel, for the plan and for the kernel.
#pragma once

#include <cstdint>

#include "common/rows.h"

namespace vidk {

constexpr int32_t kAttentionWarps = 4;  // of a thread block; each takes a row of q

struct AttentionParams {
  Rows q, k, v;
  char* out;            // [B, S, H, D], contiguous
  float* lse;           // [B, H, S], contiguous; null: not wanted
  const int32_t* lens;  // [B], or [1] for all batch rows
  int32_t len_stride;   // 1 or 0, accordingly
  int32_t fold;         // 1: key number `len` stands for all keys from there to `capacity`
  int64_t batch, tokens, heads, dim;
  int64_t capacity;  // rows of k and v
  float scale;
};

}  // namespace vidk
