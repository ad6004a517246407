// Copies of runs of tokens on the CPU, for the ops that write to a cache. No torch header.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/tensor_view.h"

namespace vidk {

// A token of a tensor, and those that follow it in its batch row.
struct TokenRun {
  const ByteView& x;
  int64_t batch, token;

  char* head(int64_t i, int64_t h) const { return x.row(batch, token + i, h); }
};

// In as few copies as the strides allow.
inline void copy_tokens(const TokenRun& from, const TokenRun& to, int64_t count) {
  const ByteView& x = from.x;
  const int64_t token_bytes = x.heads * x.dim;
  if (!x.heads_are_dense() || !to.x.heads_are_dense()) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t h = 0; h < x.heads; ++h) std::memcpy(to.head(i, h), from.head(i, h), x.dim);
    }
  } else if (x.token_stride != token_bytes || to.x.token_stride != token_bytes) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to.head(i, 0), from.head(i, 0), token_bytes);
    }
  } else {
    std::memcpy(to.head(0, 0), from.head(0, 0), count * token_bytes);
  }
}

}  // namespace vidk
