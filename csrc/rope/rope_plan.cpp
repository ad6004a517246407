#include "rope/rope_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "common/ceil_div.h"
#include "common/error.h"
#include "rope/rope_kernel.h"

namespace vidk {
LaunchPlan plan_rope_3d(const RopePlanArgs& args, const DeviceInfo& device) {
  LaunchPlan plan;
  const ByteView& x = args.x;
  if (x.empty()) return plan;
  const int64_t pair_bytes = args.element == Element::kFloat32 ? 8 : 4;
  const int64_t access = access_bytes({x, args.out});
  const int64_t vec_bytes = std::max(access, pair_bytes);

  RopeParams p{};
  p.x = rows_of(x);
  p.out = rows_of(args.out);
  p.grid = args.grid;
  p.tokens = x.tokens;
  p.heads = x.heads;
  p.head_vecs = x.dim / vec_bytes;
  const int64_t tile_vecs = std::min<int64_t>(p.head_vecs, kRopeThreads);
  const int64_t pass_heads = kRopeThreads / tile_vecs;
  const int64_t tile_heads = std::min<int64_t>(x.heads, 4096);
  // Two rounds of loads a thread, so that angles serve several tokens and yet the tiles are small
  // enough to fill the device; at most 16 KiB of angles; at least four blocks a multiprocessor.
  const int64_t angle_bytes = 2 * sizeof(float) * tile_vecs * (vec_bytes / pair_bytes);
  const int64_t tile_tokens = std::max<int64_t>(
      1,
      std::min({2 * kRopeUnroll * pass_heads / tile_heads, int64_t{kRopeMaxTokens},
                (16 << 10) / angle_bytes, x.batch * x.tokens / (4 * device.sm_count), x.tokens}));
  p.token_tiles = ceil_div(x.tokens, tile_tokens);
  p.head_tiles = ceil_div(x.heads, tile_heads);
  p.vec_tiles = ceil_div(p.head_vecs, tile_vecs);
  const int64_t tiles = x.batch * p.token_tiles * p.head_tiles * p.vec_tiles;
  if (tiles > INT32_MAX) {
    fail("rope_3d", "x", std::to_string(tiles) + " tiles of work", "at most 2147483647",
         "split the batch");
  }
  p.tile_tokens = static_cast<int32_t>(tile_tokens);
  p.tile_heads = static_cast<int32_t>(tile_heads);
  p.tile_vecs = static_cast<int32_t>(tile_vecs);
  p.pass_heads = static_cast<int32_t>(pass_heads);

  plan.kernel = std::string("vidk_rope_3d_") + element_name(args.element) + "_" +
                std::to_string(access) + "B";
  plan.grid[0] = static_cast<uint32_t>(tiles);
  plan.block[0] = static_cast<uint32_t>(ceil_div(tile_vecs * pass_heads, 32) * 32);
  plan.shared_bytes = static_cast<uint32_t>(tile_tokens * angle_bytes);
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
