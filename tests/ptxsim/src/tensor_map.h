// The tensor map that bulk tensor copies are given: 128 bytes that only the hardware reads. The
// simulator's own has this record in them; the tests' `tensor_map` writes it.
#pragma once

#include <cstdint>

#include "fault.h"

namespace ptxsim {

constexpr uint64_t kTensorMapMagic = 0x70616d726f736e74;  // "tnsormap"
constexpr uint32_t kTensorMapAlign = 64;

struct TensorMap {
  uint64_t magic;
  uint64_t base;
  uint32_t rank;
  uint32_t element_bytes;
  uint64_t dim[5];     // in elements, innermost first
  uint64_t stride[4];  // in bytes, of dimensions 1 ...
  uint32_t box[5];     // in elements
  uint32_t swizzle;    // 0: none, 1: 32 bytes, 2: 64, 3: 128

  // Bytes of a row of the box, and of the box, in shared memory.
  uint32_t row_bytes() const { return box[0] * element_bytes; }
  uint32_t box_bytes() const {
    uint32_t bytes = element_bytes;
    for (uint32_t i = 0; i < rank; ++i) bytes *= box[i];
    return bytes;
  }
};
static_assert(sizeof(TensorMap) == 120, "written byte by byte by the tests");

// Swizzles of shared addresses, shared by tensor copies and wgmma (PTX ISA 5.5.6): bits 4 ... of
// the absolute address are XORed with bits 7 ..., as many as the width has 16-byte chunks.
inline uint32_t swizzled(uint32_t at, uint32_t swizzle) {
  return at ^ ((at >> 7 & ((1u << swizzle) - 1)) << 4);
}

// What cuTensorMapEncodeTiled demands.
inline void check(const TensorMap& map) {
  const auto fail = [](const std::string& what) { throw Fault("launch", "tensor map: " + what); };
  const auto text = [](uint64_t x) { return std::to_string(x); };
  if (map.magic != kTensorMapMagic) fail("not one (the magic number is " + hex(map.magic) + ")");
  if (map.rank < 1 || map.rank > 5) fail("rank " + text(map.rank));
  const uint32_t bytes = map.element_bytes;
  if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8)
    fail("elements of " + text(bytes) + " bytes");
  if (map.base % 16 != 0) fail("base " + hex(map.base) + " is not a multiple of 16");
  if (map.swizzle > 3) fail("swizzle " + text(map.swizzle));
  for (uint32_t i = 0; i < map.rank; ++i) {
    if (map.dim[i] < 1 || map.dim[i] > uint64_t{1} << 32) fail("dimension of " + text(map.dim[i]));
    if (map.box[i] < 1 || map.box[i] > 256) fail("box of " + text(map.box[i]) + " elements");
    if (i + 1 < map.rank && (map.stride[i] % 16 != 0 || map.stride[i] >= uint64_t{1} << 40)) {
      fail("stride of " + text(map.stride[i]) + " bytes");
    }
  }
  if (map.row_bytes() % 16 != 0) fail("box rows of " + text(map.row_bytes()) + " bytes");
  const uint32_t width = 16u << map.swizzle;
  if (map.swizzle != 0 && map.row_bytes() > width) {
    fail("box rows of " + text(map.row_bytes()) + " bytes under a swizzle of " + text(width));
  }
  // How narrower rows are spaced is not documented.
  if (map.swizzle != 0 && map.row_bytes() != width) {
    throw Fault("unsupported", "a tensor map whose box rows do not fill the width of its swizzle");
  }
  if (map.swizzle != 0 && map.box_bytes() % 128 != 0) {
    throw Fault("unsupported", "a swizzled box that ends within a line of 128 bytes");
  }
}

}  // namespace ptxsim
