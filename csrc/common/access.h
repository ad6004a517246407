// How wide a kernel may load and store. No torch header, no CUDA.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/tensor_view.h"

namespace vidk {

// The widest access, 16, 8, 4 or 2 bytes, whose every address in all of the views is aligned to it
// and which divides their rows of D elements.
inline int32_t access_bytes(std::initializer_list<ByteView> views) {
  uint64_t bits = 0;
  for (const ByteView& x : views) {
    bits |= reinterpret_cast<uintptr_t>(x.data) | static_cast<uint64_t>(x.dim);
    // A stride that is never stepped over may be anything.
    if (x.batch > 1) bits |= static_cast<uint64_t>(x.batch_stride);
    if (x.tokens > 1) bits |= static_cast<uint64_t>(x.token_stride);
    if (x.heads > 1) bits |= static_cast<uint64_t>(x.head_stride);
  }
  int32_t bytes = 16;
  while (bits % bytes != 0) bytes /= 2;
  return bytes;
}

}  // namespace vidk
