#include <string>

#include "common/ceil_div.h"
#include "common/fp4_layout.h"
#include "fp4_attention/fp4_attention_plan.h"
#include "fp4_attention/fp4_attention_portable_kernel.h"

namespace vidk {
namespace {

// Channels of q and k, those that carry errors included.
int64_t depth_of(const Fp4AttentionArgs& args) {
  return args.mxfp8 ? args.row_bytes : 2 * args.row_bytes;
}

Fp4PortableParams params_of(const Fp4AttentionArgs& args) {
  Fp4PortableParams p{};
  p.q_codes = args.q_codes;
  p.q_scales = args.q_scales;
  p.k_codes = args.k_codes;
  p.k_scales = args.k_scales;
  p.k_mean = static_cast<const char*>(args.k_mean);
  if (args.k_mean != nullptr) p.q = rows_of(args.q);
  p.v = rows_of(args.v);
  p.out = static_cast<char*>(args.out);
  p.lse = args.lse;
  p.kv_len = args.kv_len;
  p.slot_tiles = static_cast<int32_t>(fp4_tiles(args.frame_tokens));
  p.head_tiles = args.capacity / args.frame_tokens * p.slot_tiles;
  p.frame_tokens = static_cast<int32_t>(args.frame_tokens);
  p.tokens = static_cast<int32_t>(args.tokens);
  p.capacity = static_cast<int32_t>(args.capacity);
  p.scale = args.scale;
  return p;
}

}  // namespace

LaunchPlan plan_fp4_attention_portable(const char*, const Fp4AttentionArgs& args,
                                       const DeviceInfo& device) {
  const bool is_hopper = device.capability == 90;
  const auto depth = static_cast<int32_t>(depth_of(args));
  const auto dim = static_cast<int32_t>(args.dim);
  LaunchPlan plan;
  plan.kernel = std::string("vidk_fp4_attention_") + (is_hopper ? "sm90_" : "portable_") +
                (args.mxfp8 ? "mxfp8" : "d" + std::to_string(depth)) +
                (args.v_is_fp8 ? "_e4m3" : "_bf16");
  plan.grid[0] = static_cast<uint32_t>(ceil_div(args.tokens, kFp4PortableQueries));
  plan.grid[1] = static_cast<uint32_t>(args.heads);
  plan.grid[2] = static_cast<uint32_t>(args.batch);
  plan.block[0] = is_hopper ? kFp4Sm90Threads : kFp4PortableThreads;
  plan.shared_bytes =
      is_hopper ? fp4_sm90_shared_bytes(depth, dim) : fp4_portable_shared_bytes(depth, dim);
  plan.args.add(params_of(args));
  return plan;
}

}  // namespace vidk
