// The parameters of the exchange's device code, for plans and kernels.
#pragma once

#include "common/rows.h"
#include "norm_rope/norm_rope_kernel.h"

namespace vidk {

struct PackParams : NormRopeTokens {
  Rows q_out, k_out, v_out;                   // of rank 0, whose heads are the first
  int64_t rank_heads;                         // H / P
  int64_t rank_stride;                        // bytes from one rank's chunk to the next
  int64_t first_frame, first_row, first_col;  // of the shard's first token
};

constexpr int kUnpackThreads = 256;
constexpr int kUnpackMaxTokens = 64;  // of a tile
constexpr int kUnpackUnroll = 2;      // vectors of k and of v that a thread has under way

// Tokens are those of the received buffers, [P, B, S_r]; a tile of them is what one thread block
// does at a time.
struct UnpackParams {
  const char* k;  // dense
  const char* v;
  Rows k_cache, v_cache;
  const int32_t* frame_slot;
  int64_t cache_rows;
  int64_t frame_tokens;
  int64_t block_tokens;  // of the block, without padding
  int64_t batch;
  int64_t shard_tokens;  // S_r
  int64_t slice_tokens;  // successive tokens of the block: of a frame's slice, or S_r
  int64_t slice_end;     // where a frame ends for slices; the block for contiguous shards
  int64_t tokens;
  int64_t head_vecs;
  int64_t row_vecs;  // of all heads
  int32_t tile_tokens;
};

}  // namespace vidk
