// vidk::qk_norm_rope_nvfp4_kv_write on the CPU.

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <string>
#include <tuple>

#include "common/parallel.h"
#include "fp4_kv/fp4_kv_check.h"
#include "fp4_kv/fp4_kv_outputs.h"
#include "fp4_kv/fp4_kv_simd.h"

namespace vidk {
namespace {

// The rows past the last one, in the last tile of each head.
void clear_padding(const Fp4Rows& rows, int64_t planes, int64_t plane_bytes) {
  if (rows.rows % kFp4TileRows == 0) return;
  const int64_t tile_bytes = plane_bytes / fp4_tiles(rows.rows);
  for (int64_t i = 1; i <= planes; ++i) {
    std::memset(rows.scales + i * plane_bytes - tile_bytes, 0, tile_bytes);
  }
}

std::tuple<Tensor, Tensor, Tensor> qk_norm_rope_nvfp4_kv_write(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_weight,
    const Tensor& k_weight, double eps, const Tensor& frame_pos, const Tensor& frame_slot,
    const Tensor& time_freqs, const Tensor& space_freqs, int64_t height, int64_t width,
    Tensor k_codes, Tensor k_scales, std::optional<Tensor> k_mean, Tensor v_cache,
    const std::string& name, const std::optional<Tensor>& perm) {
  const char* op = "qk_norm_rope_nvfp4_kv_write";
  const Fp4Recipe recipe = check_qk_norm_rope_nvfp4_kv_write(
      q, k, v, q_weight, k_weight, eps, frame_pos, frame_slot, time_freqs, space_freqs, height,
      width, k_codes, k_scales, k_mean, v_cache, name, perm);
  const int64_t frame_tokens = height * width;
  const int64_t tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  const int64_t frames = tokens / frame_tokens;
  check_positions(op, frame_pos.const_data_ptr<int32_t>(), frames, time_freqs.size(0));
  check_slots(op, frame_slot.const_data_ptr<int32_t>(), tokens, frame_tokens, v_cache.size(1));
  if (perm) check_channels(op, perm->const_data_ptr<int32_t>(), heads, dim);

  Fp4KvOutputs out(q, recipe);
  const Fp4KvArgs args =
      fp4_kv_args(recipe, q, k, v, q_weight, k_weight, eps, frame_pos, frame_slot, time_freqs,
                  space_freqs, height, width, k_codes, k_scales, k_mean, v_cache, perm, out);
  if (args.q.empty()) return {out.q, out.codes, out.scales};

  clear_padding(args.q_rows, args.q.batch * heads,
                fp4_tiles(tokens) * recipe.row_scales(dim) / 4 * kFp4TileBytes);
  const int64_t token_bytes = 6 * args.q.heads * args.q.dim;
  if (recipe.mean) {
    parallel_for(args.q.batch * frames * fp4_tiles(frame_tokens), kFp4Samples * token_bytes / 3,
                 [&](int64_t begin, int64_t end) {
                   AngleBuffer scratch(fp4_kv_scratch(heads, dim));
                   VIDK_DISPATCH_ISA(fp4_kv_means, args, begin, end, scratch.data());
                 });
  }
  parallel_for(args.q.batch * tokens, token_bytes, [&](int64_t begin, int64_t end) {
    AngleBuffer scratch(fp4_kv_scratch(heads, dim));
    VIDK_DISPATCH_ISA(fp4_kv_tokens, args, begin, end, scratch.data());
  });
  return {out.q, out.codes, out.scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) {
  m.impl("qk_norm_rope_nvfp4_kv_write", TORCH_BOX(&qk_norm_rope_nvfp4_kv_write));
}

}  // namespace vidk
