// Operands of wgmma and tcgen05 in shared memory, as their 64-bit descriptors tell (PTX ISA
// 9.7.15.5.1, 9.7.16.4.1).
#pragma once

#include <algorithm>
#include <vector>

#include "async.h"
#include "element.h"
#include "fault.h"
#include "tensor_map.h"

namespace ptxsim {

struct Descriptor {
  uint32_t start, leading, stride;  // bytes
  uint32_t swizzle;                 // as in a TensorMap

  static Descriptor of_wgmma(uint64_t bits) {
    return Descriptor(bits, static_cast<uint32_t>(4 - (bits >> 62)) & 3);
  }
  static Descriptor of_tcgen05(uint64_t bits) {
    const auto layout = static_cast<uint32_t>(bits >> 61);
    if ((bits >> 46 & 7) != 1 || (bits >> 52 & 0x1ff) != 0 || layout == 1 || layout % 2 != 0) {
      throw Fault("unsupported", "a tcgen05 matrix descriptor of " + hex(bits) +
                                     ": bits 46-48 must be 1, bits 52-60 zero, and the swizzle in "
                                     "bits 61-63 0, 2, 4 or 6");
    }
    return Descriptor(bits, layout == 0 ? 0 : 4 - layout / 2);
  }

  // The address of a byte: `along` the contiguous dimension, k if `k_major` and else M or N, in
  // bytes, and `across` it in elements. 16 bytes along it lie side by side.
  uint32_t at(bool k_major, uint32_t along, uint32_t across) const {
    const uint32_t width = 16u << swizzle;  // of the eight rows of an atom
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

 private:
  Descriptor(uint64_t bits, uint32_t swizzle)
      : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4),
        swizzle(swizzle) {
    if (bits >> 49 & 7) {
      throw Fault("unsupported", "a matrix descriptor with base offset " +
                                     std::to_string(bits >> 49 & 7) + ": align the tile's atoms");
    }
  }
};

constexpr uint32_t kChunk = 16;

// Calls f(x, k, address) for each 16-byte chunk of the operand's `rows` x k elements from `row` on.
template <class F>
void for_each_chunk(const Descriptor& d, bool k_major, Type type, int row, int rows, int k, F f) {
  const int per = static_cast<int>(kChunk * 8 / type.bits);
  for (int x = 0; x < rows; x += k_major ? 1 : per) {
    for (int i = 0; i < k; i += k_major ? per : 1) {
      const int along = (k_major ? i : row + x) * type.bits / 8, across = k_major ? row + x : i;
      f(x, i, d.at(k_major, static_cast<uint32_t>(along), static_cast<uint32_t>(across)));
    }
  }
}

// Calls f(x, k, value) for each element.
template <class F>
void for_each_element(Cta& cta, const Descriptor& d, bool k_major, Type type, int row, int rows,
                      int k, F f) {
  const int per = static_cast<int>(kChunk * 8 / type.bits);
  for_each_chunk(d, k_major, type, row, rows, k, [&](int x, int i, uint32_t at) {
    const uint8_t* chunk = cta.shared_at(at, kChunk, kChunk);
    for (int e = 0; e < per; ++e) {
      f(k_major ? x : x + e, k_major ? i + e : i, element_at(type, chunk, e));
    }
  });
}

// Adds the bytes that are read to `ranges`, neighbours joined.
inline void note_ranges(const Descriptor& d, bool k_major, Type type, int row, int rows, int k,
                        std::vector<Cta::AsyncState::Range>& ranges) {
  std::vector<uint32_t> chunks;
  for_each_chunk(d, k_major, type, row, rows, k,
                 [&](int, int, uint32_t at) { chunks.push_back(at); });
  std::sort(chunks.begin(), chunks.end());
  for (uint32_t at : chunks) {
    if (!ranges.empty() && ranges.back().at + ranges.back().bytes == at) {
      ranges.back().bytes += kChunk;
    } else {
      ranges.push_back({at, kChunk});
    }
  }
}

}  // namespace ptxsim
