// vidk::rope_3d on the CPU.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/parallel.h"
#include "rope/rope_args.h"
#include "rope/rope_check.h"
#include "rope/rope_simd.h"

namespace vidk {
namespace {

Tensor rope_3d(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
               const Tensor& space_freqs, int64_t height, int64_t width, int64_t token_offset,
               std::optional<int64_t> slice_tokens) {
  check_rope_3d(x, frame_pos, time_freqs, space_freqs, height, width, token_offset, slice_tokens);
  check_positions("rope_3d", frame_pos.const_data_ptr<int32_t>(), frame_pos.size(0),
                  time_freqs.size(0));

  Tensor out = torch::stable::new_empty(x, x.sizes());
  const RopeArgs args{element_of(x), byte_view(x), byte_view(out),
                      rope_grid(frame_pos, time_freqs, space_freqs, height, width, token_offset,
                                slice_tokens.value_or(height * width))};
  if (args.x.empty()) return out;
  parallel_for(args.x.batch * args.x.tokens, 2 * args.x.heads * args.x.dim,
               [&](int64_t begin, int64_t end) {
                 AngleBuffer angles(x.size(3));
                 VIDK_DISPATCH_ISA(rope_tokens, args, begin, end, angles.data());
               });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) { m.impl("rope_3d", TORCH_BOX(&rope_3d)); }

}  // namespace vidk
