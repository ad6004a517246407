// The tensors that nvfp4_quantize returns, on every device.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "nvfp4/nvfp4_check.h"

namespace vidk {

struct Nvfp4Outputs {
  explicit Nvfp4Outputs(const Tensor& x)
      : packed(like(x, x.size(3) / 2, ScalarType::Byte)),
        scales(like(x, x.size(3) / kNvfp4Block, ScalarType::Float8_e4m3fn)) {}

  Tensor packed;  // [B, S, H, D / 2] uint8
  Tensor scales;  // [B, S, H, D / 16] float8_e4m3fn

  uint8_t* packed_data() const { return static_cast<uint8_t*>(packed.mutable_data_ptr()); }
  uint8_t* scales_data() const { return static_cast<uint8_t*>(scales.mutable_data_ptr()); }

 private:
  static Tensor like(const Tensor& x, int64_t columns, ScalarType dtype) {
    return torch::stable::new_empty(x, {x.size(0), x.size(1), x.size(2), columns}, dtype);
  }
};

}  // namespace vidk
