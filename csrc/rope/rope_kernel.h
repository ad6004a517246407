// The parameters of rope_3d's device code, for the plan and for the kernel.
#pragma once

#include "common/rows.h"
#include "rope/rope_grid.h"

namespace vidk {

constexpr int kRopeThreads = 256;
constexpr int kRopeMaxTokens = 32;  // of a tile: no more than threads of the smallest block
constexpr int kRopeUnroll = 4;      // loads that a thread has under way

// A tile is what one thread block does: some tokens, heads and vectors of D. The grid enumerates
// batch rows, token tiles, head tiles and vector tiles, the last the fastest.
struct RopeParams {
  Rows x;
  Rows out;
  RopeGrid grid;
  int64_t tokens;
  int64_t heads;
  int64_t head_vecs;  // vectors in one head's D elements
  int64_t token_tiles;
  int64_t head_tiles;
  int64_t vec_tiles;
  int32_t tile_tokens;
  int32_t tile_heads;
  int32_t tile_vecs;
  int32_t pass_heads;  // rows of one head that the block covers at once
};

}  // namespace vidk
