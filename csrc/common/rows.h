// A [B, S, H, D] tensor as device code takes it.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

namespace vidk {

// Strides in bytes; D is contiguous.
struct Rows {
  char* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

inline Rows rows_of(const ByteView& x) {
  return {x.data, x.batch_stride, x.token_stride, x.head_stride};
}

}  // namespace vidk
