// What rope_3d demands of its arguments on every device; the host data comes on top.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "common/check.h"

namespace vidk {

// Token indices are 64-bit. Tables without space pairs cost no memory however many rows they have,
// so that only this check stops a grid whose indices would overflow.
inline void check_grid_size(const char* op, const Tensor& x, const Tensor& frame_pos,
                            int64_t height, int64_t width) {
  const int64_t frames = std::max(x.size(1), frame_pos.size(0)) + 1;
  if (height > INT64_MAX / 2 / frames / width) {
    fail(op, "height", "a grid of " + std::to_string(height) + " x " + std::to_string(width),
         "one whose token indices fit in 64 bits");
  }
}

// How many tokens of each frame are there.
inline void check_frame_slice(const char* op, int64_t height, int64_t width,
                              std::optional<int64_t> slice_tokens) {
  if (slice_tokens && (*slice_tokens < 1 || *slice_tokens > height * width)) {
    fail(op, "slice_tokens", std::to_string(*slice_tokens),
         "between 1 and height * width = " + std::to_string(height * width));
  }
}

// Which of the block's tokens are there.
inline void check_shard(const char* op, int64_t height, int64_t width, int64_t token_offset,
                        std::optional<int64_t> slice_tokens) {
  if (token_offset < 0) {
    fail(op, "token_offset", std::to_string(token_offset), "a token index of at least 0");
  }
  check_frame_slice(op, height, width, slice_tokens);
}

inline void check_rope_3d(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
                          const Tensor& space_freqs, int64_t height, int64_t width,
                          int64_t token_offset, std::optional<int64_t> slice_tokens) {
  const char* op = "rope_3d";
  check_activation(op, "x", x);
  check_int_vector(op, "frame_pos", frame_pos, "x", x);
  check_rope_tables(op, "x", x, time_freqs, space_freqs, height, width);
  check_grid_size(op, x, frame_pos, height, width);
  check_shard(op, height, width, token_offset, slice_tokens);
}

}  // namespace vidk
