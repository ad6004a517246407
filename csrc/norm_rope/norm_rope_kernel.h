// The parameters of qk_norm_rope_kv_write's device code, for the plan and for the kernels.
#pragma once

#include "common/rows.h"
#include "rope/rope_grid.h"

namespace vidk {

struct PassRows : Rows {
  int64_t pass_stride;  // from a thread's head to its next, `pass_heads` on
};

struct NormRopeParams {
  PassRows q, k, v;
  PassRows q_out, k_cache, v_cache;
  const char* q_weight;  // [H * D]
  const char* k_weight;
  const int32_t* frame_slot;
  RopeGrid grid;
  int64_t batch;
  int64_t tokens;      // of the block, S
  int64_t cache_rows;  // S_cap
  int64_t heads;
  int64_t head_vecs;     // vectors in one head's D elements
  int64_t block_tokens;  // successive tokens that a thread block takes, over batch rows
  float channels;        // H * D
  float eps;
  int32_t pass_heads;  // heads that the block covers at once
};

}  // namespace vidk
