// From tensors to what the torch-free kernels that rotate take.
#pragma once

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "rope/rope_grid.h"

namespace vidk {

inline RopeGrid rope_grid(const Tensor& frame_pos, const Tensor& time_freqs,
                          const Tensor& space_freqs, int64_t height, int64_t width,
                          int64_t token_offset, int64_t slice_tokens) {
  const int64_t frames = frame_pos.size(0);
  // From the end of the block on all tokens are padding; an offset far past it could overflow.
  return {frame_pos.const_data_ptr<int32_t>(),
          frames,
          time_freqs.const_data_ptr<float>(),
          space_freqs.const_data_ptr<float>(),
          time_freqs.size(0),
          time_freqs.size(1),
          space_freqs.size(1),
          height,
          width,
          std::min(token_offset, frames * height * width),
          slice_tokens};
}

// A thread's room for the angles of one token, aligned to cache lines.
class AngleBuffer {
 public:
  explicit AngleBuffer(int64_t dim) : lines_((dim + 15) / 16) {}
  float* data() { return lines_.data()->values; }

 private:
  struct alignas(64) Line {
    float values[16];
  };
  std::vector<Line> lines_;
};

}  // namespace vidk
