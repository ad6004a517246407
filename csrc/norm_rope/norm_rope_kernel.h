// The parameters of the device code that normalises and rotates, for plans and kernels.
#pragma once

#include "common/rows.h"
#include "rope/rope_grid.h"

namespace vidk {

struct PassRows : Rows {
  int64_t pass_stride;  // from a thread's head to its next, `pass_heads` on
};

// What the kernels need of the tokens that they normalise and rotate, wherever the results go.
struct NormRopeTokens {
  PassRows q, k, v;
  const char* q_weight;  // [H * D]
  const char* k_weight;
  RopeGrid grid;
  int64_t batch;
  int64_t tokens;  // S
  int64_t heads;
  int64_t head_vecs;     // vectors in one head's D elements
  int64_t block_tokens;  // successive tokens that a thread block takes, over batch rows
  float channels;        // H * D
  float eps;
  int32_t pass_heads;  // heads that the block covers at once
};

struct NormRopeParams : NormRopeTokens {
  PassRows q_out;
  PassRows k_out, v_out;  // the caches
  const int32_t* frame_slot;
  int64_t cache_rows;  // S_cap
};

}  // namespace vidk
