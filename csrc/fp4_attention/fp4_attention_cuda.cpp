// vidk::fp4_attention on CUDA.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <optional>
#include <tuple>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "fp4_attention/fp4_attention_args.h"

namespace vidk {
namespace {

void check_is_bfloat16(const char* op, const char* arg, const Tensor& x, const char* expected) {
  if (x.scalar_type() != ScalarType::BFloat16) fail(op, arg, "dtype " + dtype_of(x), expected);
}

std::tuple<Tensor, Tensor> fp4_attention(const Tensor& q_codes, const Tensor& q_scales,
                                         const Tensor& k_codes, const Tensor& k_scales,
                                         const Tensor& v_cache, const Tensor& kv_len,
                                         int64_t frame_tokens, const std::optional<Tensor>& q,
                                         const std::optional<Tensor>& k_mean,
                                         std::optional<double> scale) {
  const char* op = "fp4_attention";
  check_fp4_attention(q_codes, q_scales, k_codes, k_scales, v_cache, kv_len, frame_tokens, q,
                      k_mean, scale);
  if (q) check_is_bfloat16(op, "q", *q, "dtype bfloat16 on CUDA");
  if (v_cache.scalar_type() != ScalarType::Float8_e4m3fn) {
    check_is_bfloat16(op, "v_cache", v_cache, "dtype bfloat16 or float8_e4m3fn on CUDA");
  }
  const int32_t device = q_codes.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto length = values_to_check<int32_t>(kv_len)) {
    check_length(op, "kv_len", length->front(), k_codes.size(2), "k_codes");
  }
  const Fp4Outputs out(q_codes, v_cache, q);
  if (k_codes.size(2) == 0) return out.without_keys();
  const Fp4AttentionArgs args = fp4_args(q_codes, q_scales, k_codes, k_scales, v_cache, kv_len,
                                         frame_tokens, q, k_mean, scale, out);
  const Fp4AttentionChoice choice = fp4_attention_choice(op, std::getenv("VIDK_FP4_ATTENTION"));
  launch(op, plan_fp4_attention(op, args, choice, device_info(op, device)), device);
  return {out.out, out.lse};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) { m.impl("fp4_attention", TORCH_BOX(&fp4_attention)); }

}  // namespace vidk
