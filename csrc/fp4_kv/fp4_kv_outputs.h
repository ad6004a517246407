// The tensors that qk_norm_rope_nvfp4_kv_write returns, and how kernels see them, on every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <optional>

#include "common/check.h"
#include "fp4_kv/fp4_kv_args.h"
#include "rope/rope_args.h"

namespace vidk {

struct Fp4KvOutputs {
  Fp4KvOutputs(const Tensor& x, const Fp4Recipe& recipe)
      : q(torch::stable::new_empty(x,
                                   {x.size(0), recipe.mean ? x.size(1) : 0, x.size(2), x.size(3)})),
        codes(torch::stable::new_empty(
            x, {x.size(0), x.size(2), x.size(1), recipe.row_bytes(x.size(3))}, ScalarType::Byte)),
        scales(torch::stable::new_empty(
            x,
            {x.size(0), x.size(2), fp4_tiles(x.size(1)), recipe.row_scales(x.size(3)) / 4, 32, 4,
             4},
            recipe.is_mxfp8() ? ScalarType::Float8_e8m0fnu : ScalarType::Float8_e4m3fn)) {}

  Tensor q;       // [B, S, H, D], or [B, 0, H, D] for recipes without a mean
  Tensor codes;   // [B, H, S, bytes] uint8
  Tensor scales;  // [B, H, ceil(S / 128), columns / 4, 32, 4, 4]
};

inline Fp4Rows fp4_rows(const Tensor& codes, const Tensor& scales, int64_t rows) {
  return {static_cast<uint8_t*>(const_cast<void*>(codes.const_data_ptr())),
          static_cast<uint8_t*>(const_cast<void*>(scales.const_data_ptr())),
          rows == 0 ? 0 : codes.size(2) / rows, rows};
}

inline Fp4KvArgs fp4_kv_args(const Fp4Recipe& recipe, const Tensor& q, const Tensor& k,
                             const Tensor& v, const Tensor& q_weight, const Tensor& k_weight,
                             double eps, const Tensor& frame_pos, const Tensor& frame_slot,
                             const Tensor& time_freqs, const Tensor& space_freqs, int64_t height,
                             int64_t width, const Tensor& k_codes, const Tensor& k_scales,
                             const std::optional<Tensor>& k_mean, const Tensor& v_cache,
                             const std::optional<Tensor>& perm, const Fp4KvOutputs& out) {
  const int64_t frame_tokens = height * width;
  return {element_of(q),
          recipe,
          byte_view(q),
          byte_view(k),
          byte_view(v),
          recipe.mean ? byte_view(out.q) : ByteView{},
          fp4_rows(out.codes, out.scales, q.size(1)),
          fp4_rows(k_codes, k_scales, frame_tokens),
          k_mean ? static_cast<uint16_t*>(const_cast<void*>(k_mean->const_data_ptr())) : nullptr,
          byte_view(v_cache),
          v_cache.scalar_type() == ScalarType::Float8_e4m3fn,
          q_weight.const_data_ptr(),
          k_weight.const_data_ptr(),
          static_cast<float>(eps),
          frame_slot.const_data_ptr<int32_t>(),
          perm ? perm->const_data_ptr<int32_t>() : nullptr,
          rope_grid(frame_pos, time_freqs, space_freqs, height, width, 0, frame_tokens)};
}

}  // namespace vidk
