// vidk::rope_3d on CUDA.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "rope/rope_args.h"
#include "rope/rope_check.h"
#include "rope/rope_plan.h"

namespace vidk {
namespace {

Tensor rope_3d(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
               const Tensor& space_freqs, int64_t height, int64_t width, int64_t token_offset,
               std::optional<int64_t> slice_tokens) {
  const char* op = "rope_3d";
  check_rope_3d(x, frame_pos, time_freqs, space_freqs, height, width, token_offset, slice_tokens);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto positions = values_to_check<int32_t>(frame_pos)) {
    check_positions(op, positions->data(), frame_pos.size(0), time_freqs.size(0));
  }
  Tensor out = torch::stable::new_empty(x, x.sizes());
  const RopePlanArgs args{element_of(x), byte_view(x), byte_view(out),
                          rope_grid(frame_pos, time_freqs, space_freqs, height, width, token_offset,
                                    slice_tokens.value_or(height * width))};
  launch(op, plan_rope_3d(args, device_info(op, device)), device);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) { m.impl("rope_3d", TORCH_BOX(&rope_3d)); }

}  // namespace vidk
