// The parameters of qk_norm_rope_nvfp4_kv_write's device code, for the plans and for the kernels.
#pragma once

#include "common/fp4_layout.h"
#include "fp4_kv/fp4_recipe.h"
#include "norm_rope/norm_rope_kernel.h"

namespace vidk {

constexpr int kFp4KvDim = 128;                 // D
constexpr int kFp4KvHeadVecs = kFp4KvDim / 8;  // vectors of 16 bytes in a head
constexpr int kFp4KvPairs = kFp4KvDim / 2;     // of a head
// Threads of a thread block, as registers suffice on every architecture: where the first kernel
// finishes keys; of one vector each; of two.
constexpr int kFp4KvMeansThreads = 768;
constexpr int kFp4KvMaxThreads = 576;
constexpr int kFp4KvWideThreads = 512;
constexpr int kFp4KvQuarters = 4;  // of a tile: rows that are 32 apart share sectors
constexpr int kFp4KvQuarterRows = kFp4TileRows / kFp4KvQuarters;

// Quantised rows of q, or of the cache; counts are bytes.
struct Fp4KvTarget {
  uint8_t* codes;
  uint8_t* scales;
  int64_t plane;        // codes of one head
  int64_t pass_stride;  // from a thread's head to its next
  int64_t tiles;        // of one head
};

// A thread block consists of `groups`, each of which does one token at a time; a group's
// `group_threads` have a vector of one head, and of the head `pass_heads` on.
struct Fp4KvParams : NormRopeTokens {
  PassRows q_out;  // without data: recipes without a mean need no q
  PassRows v_out;  // the cache
  Fp4KvTarget q_to, k_to;
  char* k_mean;  // [B, H, slots * tiles, D] bfloat16
  const int32_t* frame_slot;
  const int32_t* perm;  // [H, D], or null
  int64_t slots;        // of the cache
  int32_t frames;       // of the block
  int32_t frame_tokens;
  int32_t frame_tiles;
  int32_t row_bytes;  // of codes
  int32_t columns;    // of scales
  int32_t cross;      // T
  int32_t v_is_fp8;
  int32_t group_threads;
  int32_t groups;
  int32_t part_rows;         // rows of each quarter that a thread block takes
  int32_t parts;             // thread blocks that share a tile
  int32_t samples_are_done;  // the first kernel writes the keys that it reads
  // Shared memory: where, in bytes, weights of k, means, the order of channels, angles, the
  // exchange and scales begin; and how many a row of scales and all of q's take.
  int32_t weights_at, means_at, perm_at, angles_at, exchange_at, stage_at;
  int32_t stage_row_bytes, stage_bytes;
};

}  // namespace vidk
