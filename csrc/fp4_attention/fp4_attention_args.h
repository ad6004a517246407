// The tensors of one call as the kernels of every device take them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "fp4_attention/fp4_attention_check.h"

namespace vidk {

struct Fp4Outputs {
  Tensor out;  // [B, S, H, D]
  Tensor lse;  // [B, H, S]

  Fp4Outputs(const Tensor& q_codes, const Tensor& v_cache, const std::optional<Tensor>& q)
      : out(torch::stable::new_empty(
            v_cache, {q_codes.size(0), q_codes.size(2), q_codes.size(1), v_cache.size(3)},
            dtype_for(q ? *q : v_cache))),
        lse(torch::stable::new_empty(v_cache, {q_codes.size(0), q_codes.size(1), q_codes.size(2)},
                                     ScalarType::Float)) {}

  // The result where no key is valid.
  std::tuple<Tensor, Tensor> without_keys() const {
    Tensor zeros = out, minus_infinity = lse;
    torch::stable::zero_(zeros);
    torch::stable::fill_(minus_infinity, -std::numeric_limits<double>::infinity());
    return {zeros, minus_infinity};
  }

 private:
  static ScalarType dtype_for(const Tensor& like) {
    const ScalarType type = like.scalar_type();
    return type == ScalarType::Float8_e4m3fn ? ScalarType::BFloat16 : type;
  }
};

inline Fp4AttentionArgs fp4_args(const Tensor& q_codes, const Tensor& q_scales,
                                 const Tensor& k_codes, const Tensor& k_scales,
                                 const Tensor& v_cache, const Tensor& kv_len, int64_t frame_tokens,
                                 const std::optional<Tensor>& q,
                                 const std::optional<Tensor>& k_mean, std::optional<double> scale,
                                 const Fp4Outputs& out) {
  const auto bytes = [](const Tensor& x) {
    return static_cast<const uint8_t*>(x.const_data_ptr());
  };
  Fp4AttentionArgs args{};
  args.mxfp8 = q_scales.scalar_type() == ScalarType::Float8_e8m0fnu;
  args.row_bytes = q_codes.size(3);
  args.scale_cols = 4 * q_scales.size(3);
  args.batch = q_codes.size(0);
  args.tokens = q_codes.size(2);
  args.heads = q_codes.size(1);
  args.dim = v_cache.size(3);
  args.capacity = k_codes.size(2);
  args.frame_tokens = frame_tokens;
  args.q_codes = bytes(q_codes);
  args.q_scales = bytes(q_scales);
  args.k_codes = bytes(k_codes);
  args.k_scales = bytes(k_scales);
  if (q) args.q = byte_view(*q);
  args.k_mean = k_mean ? k_mean->const_data_ptr() : nullptr;
  args.v_is_fp8 = v_cache.scalar_type() == ScalarType::Float8_e4m3fn;
  args.v = byte_view(v_cache);
  args.out = out.out.mutable_data_ptr();
  args.lse = out.lse.mutable_data_ptr<float>();
  args.kv_len = kv_len.const_data_ptr<int32_t>();
  args.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(args.dim))));
  return args;
}

}  // namespace vidk
