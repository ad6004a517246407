// The local part of vidk::all_gather_rope on CUDA: the rank's chunk, here or in all ranks' memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "all_gather/all_gather_check.h"
#include "all_gather/all_gather_plan.h"
#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "rope/rope_plan.h"

namespace vidk {
namespace {

void all_gather_rope(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
                     const Tensor& space_freqs, int64_t height, int64_t width, Tensor out,
                     int64_t rank, std::optional<int64_t> slice_tokens,
                     const std::optional<Tensor>& peers) {
  const char* op = "all_gather_rope";
  check_all_gather_rope(x, frame_pos, time_freqs, space_freqs, height, width, out, rank,
                        slice_tokens, peers);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto positions = values_to_check<int32_t>(frame_pos)) {
    check_positions(op, positions->data(), frame_pos.size(0), time_freqs.size(0));
  }
  if (const auto table = peers ? values_to_check<int64_t>(*peers) : std::nullopt) {
    if ((*table)[rank] != reinterpret_cast<int64_t>(out.const_data_ptr())) {
      fail(op, "peers", "another address than out's for rank " + std::to_string(rank), "out's",
           "the table belongs to the GatherBuffer that made out");
    }
  }

  const DeviceInfo info = device_info(op, device);
  const RopeGrid grid =
      gather_grid(x, frame_pos, time_freqs, space_freqs, height, width, rank, slice_tokens);
  const ByteView chunk = byte_view(torch::stable::select(out, 0, rank));
  if (!peers) {
    launch(op, plan_rope_3d({element_of(x), byte_view(x), chunk, grid}, info), device);
    return;
  }
  const GatherPlanArgs args{element_of(x),
                            {byte_view(x)},
                            chunk,
                            grid,
                            0,
                            out.size(0),
                            rank,
                            peers->const_data_ptr<int64_t>()};
  launch(op, plan_all_gather_rope(args, info), device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk_local, CUDA, m) {
  m.impl("all_gather_rope", TORCH_BOX(&all_gather_rope));
}

}  // namespace vidk
