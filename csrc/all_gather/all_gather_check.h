// What all_gather_rope demands of its arguments on every device; the host data comes on top.
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "all_gather/all_gather_kernel.h"
#include "common/check.h"
#include "rope/rope_args.h"
#include "rope/rope_check.h"

namespace vidk {

inline void check_peers(const char* op, const Tensor& peers, const Tensor& x, int64_t ranks) {
  if (ranks > kGatherMaxRanks) {
    fail(op, "peers", std::to_string(ranks) + " ranks",
         "at most " + std::to_string(kGatherMaxRanks) + " that store into each other's memory",
         "leave peers out");
  }
  check_shaped(op, "peers", peers, {gather_table(ranks)}, "[2 * P + 1]");
  if (peers.scalar_type() != ScalarType::Long) {
    fail(op, "peers", "dtype " + dtype_of(peers), "dtype int64");
  }
  check_dense(op, "peers", peers);
  check_on_device(op, "peers", peers, "x", x);
}

inline void check_all_gather_rope(const Tensor& x, const Tensor& frame_pos,
                                  const Tensor& time_freqs, const Tensor& space_freqs,
                                  int64_t height, int64_t width, const Tensor& out, int64_t rank,
                                  std::optional<int64_t> slice_tokens,
                                  const std::optional<Tensor>& peers) {
  const char* op = "all_gather_rope";
  check_activation(op, "x", x);
  check_int_vector(op, "frame_pos", frame_pos, "x", x);
  check_rope_tables(op, "x", x, time_freqs, space_freqs, height, width);
  check_grid_size(op, x, frame_pos, height, width);
  if (out.dim() != 5 || out.size(1) != x.size(0) || out.size(2) != x.size(1) ||
      out.size(3) != x.size(2) || out.size(4) != x.size(3)) {
    fail(op, "out", "shape " + shape_of(out),
         "[P, B, S_r, H, D] with the B, S_r, H and D of x " + shape_of(x));
  }
  check_typed_like(op, "out", out, "x", x);
  check_dense(op, "out", out);
  const int64_t ranks = out.size(0);
  if (rank < 0 || rank >= ranks) {
    fail(op, "rank", std::to_string(rank), "one of the " + std::to_string(ranks) + " ranks of out");
  }
  check_frame_slice(op, height, width, slice_tokens);
  if (peers) check_peers(op, *peers, x, ranks);
  check_memory(op, {{"out", &out}},
               {{"x", &x},
                {"frame_pos", &frame_pos},
                {"time_freqs", &time_freqs},
                {"space_freqs", &space_freqs},
                {"peers", peers ? &*peers : nullptr}});
}

// The token grid of a rank. Its offset never goes past the block, where an offset could overflow.
inline RopeGrid gather_grid(const Tensor& x, const Tensor& frame_pos, const Tensor& time_freqs,
                            const Tensor& space_freqs, int64_t height, int64_t width, int64_t rank,
                            std::optional<int64_t> slice_tokens) {
  const int64_t run = slice_tokens.value_or(x.size(1));
  const int64_t end = frame_pos.size(0) * height * width;
  const int64_t offset = rank > 0 && run > end / rank ? end : rank * run;
  return rope_grid(frame_pos, time_freqs, space_freqs, height, width, offset,
                   slice_tokens.value_or(height * width));
}

}  // namespace vidk
