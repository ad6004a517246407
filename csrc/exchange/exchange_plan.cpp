#include "exchange/exchange_plan.h"

#include <algorithm>
#include <string>

#include "common/access.h"
#include "exchange/exchange_kernel.h"

namespace vidk {

LaunchPlan plan_qk_norm_rope_pack(const PackPlanArgs& args, const DeviceInfo& device) {
  const TokenInputs& in = args.in;
  const ByteView& x = in.q.data != nullptr ? in.q : in.k.data != nullptr ? in.k : in.v;
  if (x.empty()) return {};
  const ByteView& out = in.q.data != nullptr   ? args.out.q
                        : in.k.data != nullptr ? args.out.k
                                               : args.out.v;
  // The largest token index: slices before it, whole frames each, the offset and the last slice.
  const int64_t frames = x.tokens / in.grid.slice_tokens + in.grid.frames + 3;
  const int64_t ranks = x.heads / out.heads;
  const bool counts_fit = args.out.rank_stride / 16 <= UINT32_MAX / ranks && frames <= INT32_MAX &&
                          in.grid.height <= INT32_MAX / frames / in.grid.width;
  // The ranks' chunks are as far apart as rank 0's three are long, so aligned as these are.
  TokenLaunch launch =
      plan_tokens("vidk_pack_", in, {args.out.q, args.out.k, args.out.v}, counts_fit, device);
  PackParams p{};
  static_cast<NormRopeTokens&>(p) = launch.tokens;
  p.q_out = rows_of(args.out.q);
  p.k_out = rows_of(args.out.k);
  p.v_out = rows_of(args.out.v);
  p.q_out.head_stride = out.head_stride;  // asked for whichever tensor is given
  p.rank_heads = out.heads;
  p.rank_stride = args.out.rank_stride;
  const int64_t frame_tokens = in.grid.height * in.grid.width;
  p.first_frame = in.grid.token_offset / frame_tokens;
  p.first_row = in.grid.token_offset % frame_tokens / in.grid.width;
  p.first_col = in.grid.token_offset % in.grid.width;
  launch.plan.args.add(p);
  return launch.plan;
}

LaunchPlan plan_unpack_kv_write(const UnpackPlanArgs& args, const DeviceInfo&) {
  LaunchPlan plan;
  const ByteView& k = args.k;
  if (k.empty() || args.k_cache.tokens == 0) return plan;
  const int64_t access = access_bytes({k, args.v, args.k_cache, args.v_cache});
  const ShardLayout& layout = args.layout;
  UnpackParams p{};
  p.k = k.data;
  p.v = args.v.data;
  p.k_cache = rows_of(args.k_cache);
  p.v_cache = rows_of(args.v_cache);
  p.frame_slot = args.frame_slot;
  p.cache_rows = args.k_cache.tokens;
  p.frame_tokens = layout.frame_tokens;
  p.block_tokens = layout.block_tokens;
  p.batch = layout.batch;
  p.shard_tokens = layout.shard_tokens;
  p.slice_tokens = layout.slice_tokens;
  p.slice_end = layout.slice_end;
  p.tokens = k.batch * k.tokens;
  p.head_vecs = k.dim / access;
  p.row_vecs = k.heads * p.head_vecs;
  // What a thread block has under way at once.
  const int64_t tile = kUnpackUnroll * kUnpackThreads / p.row_vecs;
  p.tile_tokens = static_cast<int32_t>(std::clamp<int64_t>(tile, 1, kUnpackMaxTokens));
  const int64_t tiles = p.tokens / p.tile_tokens + (p.tokens % p.tile_tokens != 0);
  plan.kernel = "vidk_unpack_" + std::to_string(access) + "B";
  plan.grid[0] = static_cast<uint32_t>(std::min<int64_t>(tiles, INT32_MAX));
  plan.block[0] = kUnpackThreads;
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
