// What kv_cache_write demands of its arguments on every device; the host data comes on top.
#pragma once

#include "common/check.h"

namespace vidk {

inline void check_kv_cache_write(const Tensor& k, const Tensor& v, const Tensor& k_cache,
                                 const Tensor& v_cache, const Tensor& frame_slot,
                                 int64_t frame_tokens) {
  const char* op = "kv_cache_write";
  check_activation(op, "k", k);
  check_like(op, "v", v, "k", k);
  check_cache(op, "k_cache", k_cache, "k", k);
  check_like(op, "v_cache", v_cache, "k_cache", k_cache);
  check_int_vector(op, "frame_slot", frame_slot, "k", k);
  if (frame_tokens < 1) {
    fail(op, "frame_tokens", std::to_string(frame_tokens), "at least 1 token a frame");
  }
  check_block_fits(op, "k", k, "frame_slot", frame_slot, frame_tokens);

  check_distinct_elements(op, "k_cache", k_cache);
  check_distinct_elements(op, "v_cache", v_cache);
  check_disjoint(op, "v_cache", v_cache, "k_cache", k_cache);
  // The slots too: checked once, then read while rows are written, they must not change.
  check_disjoint(op, "k_cache", k_cache, "k", k);
  check_disjoint(op, "k_cache", k_cache, "v", v);
  check_disjoint(op, "k_cache", k_cache, "frame_slot", frame_slot);
  check_disjoint(op, "v_cache", v_cache, "k", k);
  check_disjoint(op, "v_cache", v_cache, "v", v);
  check_disjoint(op, "v_cache", v_cache, "frame_slot", frame_slot);
}

}  // namespace vidk
