// vidk::qk_norm_rope_nvfp4_kv_write on CUDA.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "fp4_kv/fp4_kv_check.h"
#include "fp4_kv/fp4_kv_outputs.h"
#include "fp4_kv/fp4_kv_plan.h"

namespace vidk {
namespace {

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
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto positions = values_to_check<int32_t>(frame_pos)) {
    check_positions(op, positions->data(), q.size(1) / frame_tokens, time_freqs.size(0));
  }
  if (const auto slots = values_to_check<int32_t>(frame_slot)) {
    check_slots(op, slots->data(), q.size(1), frame_tokens, v_cache.size(1));
  }
  if (perm) {
    if (const auto channels = values_to_check<int32_t>(*perm)) {
      check_channels(op, channels->data(), q.size(2), q.size(3));
    }
  }

  Fp4KvOutputs out(q, recipe);
  const Fp4KvPlans plans = plan_qk_norm_rope_nvfp4_kv_write(
      fp4_kv_args(recipe, q, k, v, q_weight, k_weight, eps, frame_pos, frame_slot, time_freqs,
                  space_freqs, height, width, k_codes, k_scales, k_mean, v_cache, perm, out));
  launch(op, plans.means, device);
  launch(op, plans.write, device);
  return {out.q, out.codes, out.scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) {
  m.impl("qk_norm_rope_nvfp4_kv_write", TORCH_BOX(&qk_norm_rope_nvfp4_kv_write));
}

}  // namespace vidk
