// What fp4_attention demands of its arguments on every device.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "common/check.h"
#include "fp4_attention/fp4_attention_plan.h"

namespace vidk {

namespace fp4_checks {

inline std::string number(int64_t n) { return std::to_string(n); }

inline void codes(const char* op, const char* arg, const Tensor& x) {
  if (x.dim() != 4) fail(op, arg, "shape " + shape_of(x), "4 dimensions [B, H, S, bytes]");
  if (x.scalar_type() != ScalarType::Byte) fail(op, arg, "dtype " + dtype_of(x), "dtype uint8");
  check_dense(op, arg, x);
}

inline void scales(const char* op, const char* arg, const Tensor& x, const Tensor& codes,
                   int64_t tiles, int64_t columns) {
  check_shaped(op, arg, x, {codes.size(0), codes.size(1), tiles, columns / 4, 32, 4, 4},
               "[B, H, tiles of 128 rows, scales / 4, 32, 4, 4]");
  check_dense(op, arg, x);
}

inline void values(const char* op, const Tensor& v, const Tensor& k_codes, bool mxfp8) {
  const char* arg = "v_cache";
  if (v.dim() != 4) fail(op, arg, "shape " + shape_of(v), "4 dimensions [B, S, H, D]");
  const ScalarType type = v.scalar_type();
  if (!(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half ||
        type == ScalarType::Float8_e4m3fn)) {
    fail(op, arg, "dtype " + dtype_of(v), "dtype float32, bfloat16, float16 or float8_e4m3fn");
  }
  check_unit_stride(op, arg, v);
  if (!(v.size(0) == k_codes.size(0) && v.size(1) == k_codes.size(2) &&
        v.size(2) == k_codes.size(1))) {
    fail(op, arg, "shape " + shape_of(v),
         "[B, S_cap, H, D] with the B, H and S_cap of k_codes " + shape_of(k_codes));
  }
  const int64_t dim = v.size(3);
  const int64_t row = k_codes.size(3);
  if (mxfp8 && dim != row) {
    fail(op, arg, "D = " + number(dim), "D = " + number(row) + ", a byte of k_codes each");
  }
  const int64_t extra = 2 * row - dim;
  if (!mxfp8 && !(extra >= 0 && extra <= 2 * dim && extra % 32 == 0)) {
    fail(op, arg, "D = " + number(dim),
         "a D of which codes of depth " + number(2 * row) +
             " carry D + 2 T, T a multiple of 16 up to D");
  }
  check_on_device(op, arg, v, "q_codes", k_codes);
}

inline void means(const char* op, const Tensor& q, const Tensor& k_mean, const Tensor& v,
                  const Tensor& q_codes, int64_t tiles) {
  const int64_t batch = q_codes.size(0), heads = q_codes.size(1), dim = v.size(3);
  check_activation(op, "q", q);
  check_shaped(op, "q", q, {batch, q_codes.size(2), heads, dim}, "[B, S, H, D]");
  if (v.scalar_type() == ScalarType::Float8_e4m3fn) {
    check_on_device(op, "q", q, "v_cache", v);
  } else {
    check_typed_like(op, "q", q, "v_cache", v);
  }
  const char* arg = "k_mean";
  check_shaped(op, arg, k_mean, {batch, heads, tiles, dim}, "[B, H, tiles of 128 rows, D]");
  if (k_mean.scalar_type() != ScalarType::BFloat16) {
    fail(op, arg, "dtype " + dtype_of(k_mean), "dtype bfloat16");
  }
  check_dense(op, arg, k_mean);
  check_on_device(op, arg, k_mean, "q_codes", q_codes);
}

}  // namespace fp4_checks

inline void check_fp4_attention(const Tensor& q_codes, const Tensor& q_scales,
                                const Tensor& k_codes, const Tensor& k_scales,
                                const Tensor& v_cache, const Tensor& kv_len, int64_t frame_tokens,
                                const std::optional<Tensor>& q, const std::optional<Tensor>& k_mean,
                                std::optional<double> scale) {
  using fp4_checks::number;
  const char* op = "fp4_attention";
  fp4_checks::codes(op, "q_codes", q_codes);
  const ScalarType type = q_scales.scalar_type();
  if (!(type == ScalarType::Float8_e4m3fn || type == ScalarType::Float8_e8m0fnu)) {
    fail(op, "q_scales", "dtype " + dtype_of(q_scales),
         "dtype float8_e4m3fn (NVFP4) or float8_e8m0fnu (MXFP8)");
  }
  const bool mxfp8 = type == ScalarType::Float8_e8m0fnu;
  const int64_t block = mxfp8 ? 32 : 8;  // bytes of codes to a scale, of which four lie together
  const int64_t row = q_codes.size(3);
  if (!(row > 0 && row % (4 * block) == 0)) {
    fail(op, "q_codes", number(row) + " bytes a row",
         "a positive multiple of " + number(4 * block) + " for scales of " + dtype_of(q_scales));
  }
  fp4_checks::scales(op, "q_scales", q_scales, q_codes, fp4_tiles(q_codes.size(2)), row / block);
  check_on_device(op, "q_scales", q_scales, "q_codes", q_codes);
  fp4_checks::codes(op, "k_codes", k_codes);
  if (!(k_codes.size(0) == q_codes.size(0) && k_codes.size(1) == q_codes.size(1) &&
        k_codes.size(3) == q_codes.size(3))) {
    fail(op, "k_codes", "shape " + shape_of(k_codes),
         "[B, H, S_cap, bytes] with the B, H and bytes of q_codes " + shape_of(q_codes));
  }
  check_on_device(op, "k_codes", k_codes, "q_codes", q_codes);
  if (frame_tokens < 1) {
    fail(op, "frame_tokens", number(frame_tokens), "at least 1 token a frame");
  }
  const int64_t capacity = k_codes.size(2);
  if (capacity % frame_tokens != 0) {
    fail(op, "k_codes", number(capacity) + " rows",
         "whole frames of " + number(frame_tokens) + " rows");
  }
  const int64_t tiles = capacity / frame_tokens * fp4_tiles(frame_tokens);
  check_typed_like(op, "k_scales", k_scales, "q_scales", q_scales);
  fp4_checks::scales(op, "k_scales", k_scales, k_codes, tiles, row / block);
  fp4_checks::values(op, v_cache, k_codes, mxfp8);
  check_int_vector(op, "kv_len", kv_len, "q_codes", q_codes);
  if (kv_len.size(0) != 1) {
    fail(op, "kv_len", number(kv_len.size(0)) + " elements", "1 element");
  }
  if (k_mean && !q) {
    fail(op, "q", "None", "a tensor, as k_mean is given",
         "q times the mean of its keys is added to logits");
  }
  if (q && !k_mean) fail(op, "q", "a tensor", "None, as k_mean is None");
  if (q) fp4_checks::means(op, *q, *k_mean, v_cache, q_codes, tiles);
  if (scale && !(*scale > 0 && std::isfinite(*scale))) {
    fail(op, "scale", float_of(*scale), "a positive number");
  }
}

}  // namespace vidk
