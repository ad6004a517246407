// What qk_norm_rope_kv_write demands of its arguments on every device; the host data comes on top.
#pragma once

#include <string>

#include "common/check.h"
#include "rope/rope_check.h"

namespace vidk {

inline void check_norm_weight(const char* op, const char* arg, const Tensor& weight,
                              const char* x_arg, const Tensor& x) {
  const int64_t channels = x.size(2) * x.size(3);
  if (weight.dim() != 1 || weight.size(0) != channels) {
    fail(op, arg, "shape " + shape_of(weight),
         "shape [H * D] = [" + std::to_string(channels) + "]");
  }
  if (!weight.is_contiguous()) {
    fail(op, arg, "a strided weight", "a contiguous one", "call .contiguous()");
  }
  check_typed_like(op, arg, weight, x_arg, x);
}

inline void check_qk_norm_rope_kv_write(const Tensor& q, const Tensor& k, const Tensor& v,
                                        const Tensor& q_weight, const Tensor& k_weight, double eps,
                                        const Tensor& frame_pos, const Tensor& frame_slot,
                                        const Tensor& time_freqs, const Tensor& space_freqs,
                                        int64_t height, int64_t width, const Tensor& k_cache,
                                        const Tensor& v_cache) {
  const char* op = "qk_norm_rope_kv_write";
  check_activation(op, "q", q);
  check_like(op, "k", k, "q", q);
  check_like(op, "v", v, "q", q);
  check_norm_weight(op, "q_weight", q_weight, "q", q);
  check_norm_weight(op, "k_weight", k_weight, "q", q);
  if (!(eps >= 0)) fail(op, "eps", float_of(eps), "a value of at least 0");
  check_int_vector(op, "frame_pos", frame_pos, "q", q);
  check_int_vector(op, "frame_slot", frame_slot, "q", q);
  check_rope_tables(op, "q", q, time_freqs, space_freqs, height, width);
  check_grid_size(op, q, frame_pos, height, width);
  check_cache(op, "k_cache", k_cache, "k", k);
  check_like(op, "v_cache", v_cache, "k_cache", k_cache);
  check_block_fits(op, "q", q, "frame_pos", frame_pos, height * width);
  check_block_fits(op, "q", q, "frame_slot", frame_slot, height * width);

  check_distinct_elements(op, "k_cache", k_cache);
  check_distinct_elements(op, "v_cache", v_cache);
  check_disjoint(op, "v_cache", v_cache, "k_cache", k_cache);
  // All that is read: a row is written while others, and indices checked before, are still needed.
  check_disjoint(op, "k_cache", k_cache, "q", q);
  check_disjoint(op, "k_cache", k_cache, "k", k);
  check_disjoint(op, "k_cache", k_cache, "v", v);
  check_disjoint(op, "k_cache", k_cache, "q_weight", q_weight);
  check_disjoint(op, "k_cache", k_cache, "k_weight", k_weight);
  check_disjoint(op, "k_cache", k_cache, "frame_pos", frame_pos);
  check_disjoint(op, "k_cache", k_cache, "frame_slot", frame_slot);
  check_disjoint(op, "k_cache", k_cache, "time_freqs", time_freqs);
  check_disjoint(op, "k_cache", k_cache, "space_freqs", space_freqs);
  check_disjoint(op, "v_cache", v_cache, "q", q);
  check_disjoint(op, "v_cache", v_cache, "k", k);
  check_disjoint(op, "v_cache", v_cache, "v", v);
  check_disjoint(op, "v_cache", v_cache, "q_weight", q_weight);
  check_disjoint(op, "v_cache", v_cache, "k_weight", k_weight);
  check_disjoint(op, "v_cache", v_cache, "frame_pos", frame_pos);
  check_disjoint(op, "v_cache", v_cache, "frame_slot", frame_slot);
  check_disjoint(op, "v_cache", v_cache, "time_freqs", time_freqs);
  check_disjoint(op, "v_cache", v_cache, "space_freqs", space_freqs);
}

}  // namespace vidk
