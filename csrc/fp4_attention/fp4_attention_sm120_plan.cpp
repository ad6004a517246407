#include "common/fp4_layout.h"
#include "fp4_attention/fp4_attention_plan.h"
#include "fp4_attention/fp4_attention_sm120_kernel.h"

namespace vidk {

LaunchPlan plan_fp4_attention_sm120(const char*, const Fp4AttentionArgs& args, const DeviceInfo&) {
  const int64_t slots = args.capacity / args.frame_tokens;
  Fp4Sm120Params p{};
  p.q_codes = args.q_codes;
  p.q_scales = args.q_scales;
  p.k_codes = args.k_codes;
  p.k_scales = args.k_scales;
  p.q = rows_of(args.q);
  p.k_mean = static_cast<const uint8_t*>(args.k_mean);
  p.v = rows_of(args.v);
  p.out = static_cast<uint8_t*>(args.out);
  p.lse = args.lse;
  p.kv_len = args.kv_len;
  p.tokens = static_cast<int32_t>(args.tokens);
  p.capacity = static_cast<int32_t>(args.capacity);
  p.frame_tokens = static_cast<int32_t>(args.frame_tokens);
  p.k_tiles = static_cast<int32_t>(slots * fp4_tiles(args.frame_tokens));
  p.scale = args.scale;

  LaunchPlan plan;
  plan.kernel = std::string("vidk_fp4_attention_sm120_") +
                (args.mxfp8 ? "mxfp8" : "nvfp4_d" + std::to_string(2 * args.row_bytes)) +
                (args.v_is_fp8 ? "_e4m3" : "_bf16");
  plan.grid[0] = static_cast<uint32_t>(fp4_tiles(args.tokens));
  plan.grid[1] = static_cast<uint32_t>(args.heads);
  plan.grid[2] = static_cast<uint32_t>(args.batch);
  plan.block[0] = 32 * kFp4Sm120Warps;
  const int row_bytes = static_cast<int>(args.row_bytes);
  const int scale_cols = static_cast<int>(args.scale_cols);
  plan.shared_bytes =
      static_cast<uint32_t>(fp4_sm120_shared(row_bytes, scale_cols, args.v_is_fp8 ? 1 : 2).total);
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
