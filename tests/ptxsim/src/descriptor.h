// Operands of wgmma in shared memory, as their 64-bit descriptors tell (PTX ISA 9.7.15.5.1).
#pragma once

#include <algorithm>
#include <vector>

#include "fault.h"
#include "tensor_map.h"

namespace ptxsim {

struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t swizzle;                 // as in a TensorMap

  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        swizzle(static_cast<uint32_t>(4 - (bits >> 62)) & 3) {
    if (bits >> 49 & 7) {
      throw Fault("unsupported", "a wgmma descriptor with base offset " +
                                     std::to_string(bits >> 49 & 7) + ": align the tile's atoms");
    }
  }

  // The address of element (x, k), where x counts along M or N. Elements are `size` bytes; those of
  // a 16-byte chunk, along k if `k_major` and else along x, lie side by side.
  uint32_t at(bool k_major, uint32_t x, uint32_t k, uint32_t size) const {
    const uint32_t width = 16u << swizzle;  // of the eight rows of an atom
    const uint32_t along = (k_major ? k : x) * size, across = k_major ? x : k;
    uint32_t at = start + across % 8 * width;
    if (k_major && swizzle) {  // all k of one instruction lie in one row
      at += along + across / 8 * stride;
    } else if (k_major) {
      at += along % width + along / width * leading + across / 8 * stride;
    } else if (swizzle) {
      at += along % width + along / width * leading + across / 8 * stride;
    } else {
      at += along % width + along / width * stride + across / 8 * leading;
    }
    return swizzled(at, swizzle);
  }
};

}  // namespace ptxsim
