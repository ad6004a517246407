// vidk::qk_norm_rope_kv_write on CUDA.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "norm_rope/norm_rope_check.h"
#include "norm_rope/norm_rope_plan.h"
#include "rope/rope_args.h"

namespace vidk {
namespace {

Tensor qk_norm_rope_kv_write(const Tensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& q_weight, const Tensor& k_weight, double eps,
                             const Tensor& frame_pos, const Tensor& frame_slot,
                             const Tensor& time_freqs, const Tensor& space_freqs, int64_t height,
                             int64_t width, Tensor k_cache, Tensor v_cache) {
  check_qk_norm_rope_kv_write(q, k, v, q_weight, k_weight, eps, frame_pos, frame_slot, time_freqs,
                              space_freqs, height, width, k_cache, v_cache);
  const char* op = "qk_norm_rope_kv_write";
  const int64_t frame_tokens = height * width;
  const int32_t device = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto positions = values_to_check<int32_t>(frame_pos)) {
    const int64_t frames = q.size(1) / frame_tokens + (q.size(1) % frame_tokens != 0);
    check_positions(op, positions->data(), frames, time_freqs.size(0));
  }
  if (const auto slots = values_to_check<int32_t>(frame_slot)) {
    check_slots(op, slots->data(), q.size(1), frame_tokens, k_cache.size(1));
  }

  Tensor q_out = torch::stable::new_empty(q, q.sizes());
  const NormRopePlanArgs args{
      {element_of(q), byte_view(q), byte_view(k), byte_view(v), q_weight.const_data_ptr(),
       k_weight.const_data_ptr(), static_cast<float>(eps),
       rope_grid(frame_pos, time_freqs, space_freqs, height, width, 0, frame_tokens)},
      byte_view(q_out),
      byte_view(k_cache),
      byte_view(v_cache),
      frame_slot.const_data_ptr<int32_t>()};
  launch(op, plan_qk_norm_rope_kv_write(args, device_info(op, device)), device);
  return q_out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) {
  m.impl("qk_norm_rope_kv_write", TORCH_BOX(&qk_norm_rope_kv_write));
}

}  // namespace vidk
