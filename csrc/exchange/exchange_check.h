// What the exchange's ops demand of their arguments on every device; the host data comes on top.
#pragma once

#include <optional>
#include <string>

#include "exchange/exchange_layout.h"
#include "norm_rope/norm_rope_check.h"

namespace vidk {

// The first tensor that is given, which the others are like.
struct Given {
  const char* arg;
  const Tensor& x;
};

inline Given check_qk_norm_rope_pack(
    const std::optional<Tensor>& q, const std::optional<Tensor>& k, const std::optional<Tensor>& v,
    const std::optional<Tensor>& q_weight, const std::optional<Tensor>& k_weight, double eps,
    const Tensor& frame_pos, const Tensor& time_freqs, const Tensor& space_freqs, int64_t height,
    int64_t width, int64_t ranks, int64_t token_offset, std::optional<int64_t> slice_tokens) {
  const char* op = "qk_norm_rope_pack";
  if (!q && !k && !v) fail(op, "q", "None", "at least one of q, k and v");
  const Given first = q ? Given{"q", *q} : k ? Given{"k", *k} : Given{"v", *v};
  check_activation(op, first.arg, first.x);
  if (q && k) check_like(op, "k", *k, "q", *q);
  if (v && (q || k)) check_like(op, "v", *v, first.arg, first.x);
  if (q && !q_weight) fail(op, "q_weight", "None", "a weight, as q is given");
  if (!q && q_weight) fail(op, "q_weight", "a tensor", "None, as q is not given");
  if (k && !k_weight) fail(op, "k_weight", "None", "a weight, as k is given");
  if (!k && k_weight) fail(op, "k_weight", "a tensor", "None, as k is not given");
  if (q) check_norm_weight(op, "q_weight", *q_weight, "q", *q);
  if (k) check_norm_weight(op, "k_weight", *k_weight, "k", *k);
  if (!(eps >= 0)) fail(op, "eps", float_of(eps), "a value of at least 0");
  check_int_vector(op, "frame_pos", frame_pos, first.arg, first.x);
  check_rope_tables(op, first.arg, first.x, time_freqs, space_freqs, height, width);
  check_grid_size(op, first.x, frame_pos, height, width);
  check_shard(op, height, width, token_offset, slice_tokens);
  const int64_t heads = first.x.size(2);
  if (ranks < 1 || heads % ranks != 0) {
    fail(op, "ranks", std::to_string(ranks),
         "a number of ranks that divides the " + std::to_string(heads) + " heads of " + first.arg,
         "exchange among fewer ranks, or gather k and v");
  }
  return first;
}

// [P, B, S_r, H / P, D], as a collective leaves it.
inline void check_received(const char* op, const char* arg, const Tensor& x) {
  if (x.dim() != 5) fail(op, arg, "shape " + shape_of(x), "5 dimensions [P, B, S_r, H / P, D]");
  check_floating(op, arg, x);
  if (!x.is_contiguous()) {
    fail(op, arg, "a strided buffer", "a contiguous one", "call .contiguous()");
  }
}

inline void check_unpack_kv_write(const Tensor& k, const Tensor& v, const Tensor& k_cache,
                                  const Tensor& v_cache, const Tensor& frame_slot,
                                  int64_t frame_tokens, int64_t tokens,
                                  std::optional<int64_t> slice_tokens) {
  const char* op = "unpack_kv_write";
  check_received(op, "k", k);
  check_received(op, "v", v);
  check_shaped_like(op, "v", v, "k", k);
  check_typed_like(op, "v", v, "k", k);
  check_activation(op, "k_cache", k_cache);
  if (k_cache.size(0) != k.size(1) || k_cache.size(2) != k.size(3) ||
      k_cache.size(3) != k.size(4)) {
    fail(op, "k_cache", "shape " + shape_of(k_cache),
         "[B, S_cap, H / P, D] with the B, H / P and D of k " + shape_of(k));
  }
  check_typed_like(op, "k_cache", k_cache, "k", k);
  check_like(op, "v_cache", v_cache, "k_cache", k_cache);
  check_int_vector(op, "frame_slot", frame_slot, "k", k);
  if (frame_tokens < 1) {
    fail(op, "frame_tokens", std::to_string(frame_tokens), "at least 1 token a frame");
  }
  const int64_t frames = tokens < 0 ? 0 : tokens / frame_tokens + (tokens % frame_tokens != 0);
  if (tokens < 0 || frames > frame_slot.size(0)) {
    fail(op, "tokens", std::to_string(tokens),
         "from 0 to the tokens of " + std::to_string(frame_slot.size(0)) + " frames of " +
             std::to_string(frame_tokens));
  }
  // Quotients, as products of sizes that are not in memory could overflow.
  const int64_t ranks = k.size(0);
  const int64_t shard = k.size(2);
  if (!slice_tokens) {
    if (tokens > ranks * shard) {
      fail(op, "tokens", std::to_string(tokens),
           "at most the " + std::to_string(ranks * shard) + " that " + std::to_string(ranks) +
               " ranks hold");
    }
  } else {
    if (*slice_tokens < 1 || *slice_tokens > frame_tokens || ranks == 0 ||
        *slice_tokens < frame_tokens / ranks + (frame_tokens % ranks != 0)) {
      fail(op, "slice_tokens", std::to_string(*slice_tokens),
           "from frame_tokens / P, rounded up, to frame_tokens for " + std::to_string(ranks) +
               " ranks and frames of " + std::to_string(frame_tokens));
    }
    if (frames > shard / *slice_tokens) {
      fail(op, "k", std::to_string(shard) + " tokens a rank",
           "a slice of " + std::to_string(*slice_tokens) + " tokens of each of " +
               std::to_string(frames) + " frames");
    }
  }

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
