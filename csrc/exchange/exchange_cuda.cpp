// vidk::qk_norm_rope_pack and vidk::unpack_kv_write on CUDA.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "exchange/exchange_args.h"
#include "exchange/exchange_check.h"
#include "exchange/exchange_plan.h"
#include "rope/rope_args.h"

namespace vidk {
namespace {

Tensor qk_norm_rope_pack(const std::optional<Tensor>& q, const std::optional<Tensor>& k,
                         const std::optional<Tensor>& v, const std::optional<Tensor>& q_weight,
                         const std::optional<Tensor>& k_weight, double eps, const Tensor& frame_pos,
                         const Tensor& time_freqs, const Tensor& space_freqs, int64_t height,
                         int64_t width, int64_t ranks, int64_t token_offset,
                         std::optional<int64_t> slice_tokens) {
  const char* op = "qk_norm_rope_pack";
  const Tensor& x =
      check_qk_norm_rope_pack(q, k, v, q_weight, k_weight, eps, frame_pos, time_freqs, space_freqs,
                              height, width, ranks, token_offset, slice_tokens)
          .x;
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto positions = values_to_check<int32_t>(frame_pos)) {
    check_positions(op, positions->data(), frame_pos.size(0), time_freqs.size(0));
  }

  const int64_t given = q.has_value() + k.has_value() + v.has_value();
  Tensor out = torch::stable::new_empty(
      x, {ranks, given, x.size(0), x.size(1), x.size(2) / ranks, x.size(3)});
  const ByteView q_view = view_of_given(q), k_view = view_of_given(k), v_view = view_of_given(v);
  const PackPlanArgs args{
      {element_of(x), q_view, k_view, v_view, data_of_given(q_weight), data_of_given(k_weight),
       static_cast<float>(eps),
       rope_grid(frame_pos, time_freqs, space_freqs, height, width, token_offset,
                 slice_tokens.value_or(height * width))},
      packed_chunks(q_view, k_view, v_view, ranks, static_cast<char*>(out.mutable_data_ptr()))};
  launch(op, plan_qk_norm_rope_pack(args, device_info(op, device)), device);
  return out;
}

void unpack_kv_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                     const Tensor& frame_slot, int64_t frame_tokens, int64_t tokens,
                     std::optional<int64_t> slice_tokens) {
  const char* op = "unpack_kv_write";
  check_unpack_kv_write(k, v, k_cache, v_cache, frame_slot, frame_tokens, tokens, slice_tokens);
  const int32_t device = k.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto slots = values_to_check<int32_t>(frame_slot)) {
    check_slots(op, slots->data(), tokens, frame_tokens, k_cache.size(1));
  }
  const UnpackPlanArgs args{received_view(k),
                            received_view(v),
                            byte_view(k_cache),
                            byte_view(v_cache),
                            frame_slot.const_data_ptr<int32_t>(),
                            shard_layout(k, frame_tokens, tokens, slice_tokens)};
  launch(op, plan_unpack_kv_write(args, device_info(op, device)), device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) {
  m.impl("qk_norm_rope_pack", TORCH_BOX(&qk_norm_rope_pack));
  m.impl("unpack_kv_write", TORCH_BOX(&unpack_kv_write));
}

}  // namespace vidk
