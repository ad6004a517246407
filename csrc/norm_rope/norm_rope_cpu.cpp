// vidk::qk_norm_rope_kv_write on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/parallel.h"
#include "norm_rope/norm_rope_check.h"
#include "norm_rope/norm_rope_simd.h"
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
  const int32_t* slots = frame_slot.const_data_ptr<int32_t>();
  const int64_t frames = q.size(1) / frame_tokens + (q.size(1) % frame_tokens != 0);
  check_positions(op, frame_pos.const_data_ptr<int32_t>(), frames, time_freqs.size(0));
  check_slots(op, slots, q.size(1), frame_tokens, k_cache.size(1));

  Tensor q_out = torch::stable::new_empty(q, q.sizes());
  const NormRopeArgs args{
      element_of(q),
      byte_view(q),
      byte_view(k),
      byte_view(v),
      byte_view(q_out),
      byte_view(k_cache),
      byte_view(v_cache),
      q_weight.const_data_ptr(),
      k_weight.const_data_ptr(),
      static_cast<float>(eps),
      slots,
      rope_grid(frame_pos, time_freqs, space_freqs, height, width, 0, frame_tokens)};
  if (args.q.empty()) return q_out;
  parallel_for(args.q.batch * args.q.tokens, 6 * args.q.heads * args.q.dim,
               [&](int64_t begin, int64_t end) {
                 AngleBuffer angles(q.size(3));
                 VIDK_DISPATCH_ISA(norm_rope_tokens, args, begin, end, angles.data());
               });
  return q_out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) {
  m.impl("qk_norm_rope_kv_write", TORCH_BOX(&qk_norm_rope_kv_write));
}

}  // namespace vidk
