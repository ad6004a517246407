// The parameters of the fused AllGather + RoPE, for the plan and for the kernel.
#pragma once

#include <cstdint>

#include "rope/rope_kernel.h"

namespace vidk {

constexpr int kGatherMaxRanks = 64;
constexpr int kGatherMaxLocal = 8;  // ranks that one launch drives: one, or more in a test

// The table of peers, P addresses of the ranks' buffers, P of their signals, and the multicast
// address of the buffers, or 0. All are addresses of this device; memory of others is mapped.
constexpr int64_t gather_table(int64_t ranks) { return 2 * ranks + 1; }

// A rank's signals, uint32: per rank the last call that it is ready for; per rank the last call
// that it has stored all of; blocks that have finished this call; calls. All zero before the first
// call.
constexpr int64_t gather_signals(int64_t ranks) { return 2 * ranks + 2; }

// The grid enumerates tiles, and for each tile the launch's ranks, the fastest.
struct GatherParams {
  RopeParams rope;       // of the first rank; `out.data` is null: an offset in a rank's chunk
  const int64_t* peers;  // on the device
  const char* out;       // the first rank's own buffer, as its caller knows it
  int64_t offset_step;   // token_offset from one rank to the next
  int64_t chunk;         // bytes that a rank gives
  int32_t ranks;
  int32_t first_rank;
  int32_t local;  // ranks of this launch
  const char* x[kGatherMaxLocal];
};

}  // namespace vidk
