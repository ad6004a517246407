// The local part of vidk::all_gather_rope on the CPU: the rank's own chunk.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "all_gather/all_gather_check.h"
#include "common/parallel.h"
#include "rope/rope_simd.h"

namespace vidk {
namespace {

void all_gather_rope(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
                     const Tensor& space_freqs, int64_t height, int64_t width, Tensor out,
                     int64_t rank, std::optional<int64_t> slice_tokens,
                     const std::optional<Tensor>& peers) {
  const char* op = "all_gather_rope";
  check_all_gather_rope(x, frame_pos, time_freqs, space_freqs, height, width, out, rank,
                        slice_tokens, peers);
  if (peers) fail(op, "peers", "a tensor", "None on the CPU");
  check_positions(op, frame_pos.const_data_ptr<int32_t>(), frame_pos.size(0), time_freqs.size(0));

  const RopeArgs args{
      element_of(x), byte_view(x), byte_view(torch::stable::select(out, 0, rank)),
      gather_grid(x, frame_pos, time_freqs, space_freqs, height, width, rank, slice_tokens)};
  if (args.x.empty()) return;
  parallel_for(args.x.batch * args.x.tokens, 2 * args.x.heads * args.x.dim,
               [&](int64_t begin, int64_t end) {
                 AngleBuffer angles(x.size(3));
                 VIDK_DISPATCH_ISA(rope_tokens, args, begin, end, angles.data());
               });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk_local, CPU, m) {
  m.impl("all_gather_rope", TORCH_BOX(&all_gather_rope));
}

}  // namespace vidk
