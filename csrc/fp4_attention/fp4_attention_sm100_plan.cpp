#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "common/ceil_div.h"
#include "fp4_attention/fp4_attention_plan.h"
#include "fp4_attention/fp4_attention_sm100_kernel.h"

namespace vidk {
namespace {

// Elements of maps have two bytes, whatever the tensor's have.
constexpr int64_t kMapElement = 2;

// Dimensions in bytes, innermost first, and the bytes from one to the next of all but that.
TensorMap tensor_map(const void* base, const int64_t (&dim)[5], const int64_t (&stride)[4],
                     const uint32_t (&box)[3]) {
  TensorMap map{};
  map.base = reinterpret_cast<uintptr_t>(base);
  map.rank = 5;
  map.element_bytes = kMapElement;
  for (int i = 0; i < 5; ++i) {
    map.dim[i] = static_cast<uint64_t>(i == 0 ? dim[0] / kMapElement : dim[i]);
    map.box[i] = i < 3 ? box[i] : 1;
    // A stride that is never stepped over may be anything that is valid.
    if (i > 0) map.stride[i - 1] = dim[i] > 1 ? static_cast<uint64_t>(stride[i - 1]) : 16;
  }
  map.box[0] /= kMapElement;
  map.swizzle = box[0] == 128 ? Swizzle::k128B : box[0] == 64 ? Swizzle::k64B : Swizzle::k32B;
  return map;
}

// [B, H, slots * rows, row_bytes] as columns of a swizzle's width, side by side. Rows end with
// their slot: past it a tile is zero.
TensorMap codes_map(const uint8_t* codes, const Fp4AttentionArgs& args, int64_t slots,
                    int64_t rows) {
  const int64_t bytes = args.row_bytes;
  const int64_t panel = fp4_sm100_panel(static_cast<int>(bytes));
  const int64_t slot = rows * bytes;
  return tensor_map(
      codes, {panel, rows, bytes / panel, slots, args.batch * args.heads},
      {bytes, panel, slot, slots * slot},
      {static_cast<uint32_t>(panel), kFp4Sm100Rows, static_cast<uint32_t>(bytes / panel)});
}

// Rows of [B, slots * rows, H, D], 128 bytes wide.
TensorMap rows_map(const ByteView& x, int64_t slots, int64_t rows) {
  return tensor_map(x.data, {x.dim, rows, slots, x.heads, x.batch},
                    {x.token_stride, rows * x.token_stride, x.head_stride, x.batch_stride},
                    {128, kFp4Sm100Rows, 1});
}

TensorMap means_map(const Fp4AttentionArgs& args, int64_t tiles) {
  const int64_t row = args.dim * 2;
  return tensor_map(args.k_mean, {row, tiles, 1, args.heads, args.batch},
                    {row, 0, tiles * row, args.heads * tiles * row}, {128, kFp4Sm100MeanTiles, 1});
}

ByteView out_view(const Fp4AttentionArgs& args) {
  const int64_t row = args.dim * 2;
  ByteView out{};
  out.data = static_cast<char*>(args.out);
  out.batch = args.batch;
  out.tokens = args.tokens;
  out.heads = args.heads;
  out.dim = row;
  out.head_stride = row;
  out.token_stride = args.heads * row;
  out.batch_stride = args.tokens * args.heads * row;
  return out;
}

}  // namespace

LaunchPlan plan_fp4_attention_sm100(const char*, const Fp4AttentionArgs& args, const DeviceInfo&) {
  const int64_t slots = args.capacity / args.frame_tokens;
  const int64_t slot_tiles = fp4_tiles(args.frame_tokens);
  Fp4Sm100Params p{};
  p.q_scales = args.q_scales;
  p.k_scales = args.k_scales;
  p.lse = args.lse;
  p.kv_len = args.kv_len;
  p.tokens = static_cast<int32_t>(args.tokens);
  p.capacity = static_cast<int32_t>(args.capacity);
  p.frame_tokens = static_cast<int32_t>(args.frame_tokens);
  p.slot_tiles = static_cast<int32_t>(slot_tiles);
  p.head_tiles = static_cast<int32_t>(slots * slot_tiles);
  p.has_means = args.k_mean != nullptr;
  p.negative = std::signbit(args.scale);
  // Never zero: what masks a key is minus infinity times this.
  p.scale_log2 = std::max(std::fabs(args.scale) * 1.4426950408889634f, FLT_MIN);

  LaunchPlan plan;
  plan.kernel = std::string("vidk_fp4_attention_sm100_") +
                (args.mxfp8 ? "mxfp8" : "nvfp4_d" + std::to_string(2 * args.row_bytes)) +
                (args.v_is_fp8 ? "_e4m3" : "_bf16");
  plan.grid[0] = static_cast<uint32_t>(ceil_div(args.tokens, kFp4Sm100QueryTiles * kFp4Sm100Rows));
  plan.grid[1] = static_cast<uint32_t>(args.heads);
  plan.grid[2] = static_cast<uint32_t>(args.batch);
  plan.block[0] = kFp4Sm100Threads;
  const Fp4Sm100Shared shared(static_cast<int>(args.row_bytes), static_cast<int>(args.scale_cols));
  plan.shared_bytes = static_cast<uint32_t>(shared.total);

  const TensorMap out = rows_map(out_view(args), 1, args.tokens);
  plan.args.add(p);
  plan.args.fill(offsetof(Fp4Sm100Params, q_codes), codes_map(args.q_codes, args, 1, args.tokens));
  plan.args.fill(offsetof(Fp4Sm100Params, k_codes),
                 codes_map(args.k_codes, args, slots, args.frame_tokens));
  // Where there are no means, maps that the driver takes and nobody reads.
  plan.args.fill(offsetof(Fp4Sm100Params, q), p.has_means ? rows_map(args.q, 1, args.tokens) : out);
  plan.args.fill(offsetof(Fp4Sm100Params, k_mean),
                 p.has_means ? means_map(args, p.head_tiles) : out);
  plan.args.fill(offsetof(Fp4Sm100Params, v), rows_map(args.v, slots, args.frame_tokens));
  plan.args.fill(offsetof(Fp4Sm100Params, out), out);
  return plan;
}

}  // namespace vidk
