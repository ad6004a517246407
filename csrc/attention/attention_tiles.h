// Written by kernels/export.py together with the PTX that these numbers describe.
#pragma once

#include <cstdint>

namespace vidk {

struct AttentionTile {
  uint32_t rows;  // of q in one thread block
  uint32_t keys;  // loaded at a time
  uint32_t threads;
  uint32_t shared_bytes;
};

constexpr uint32_t kAttentionHeadDim = 128;
constexpr AttentionTile kAttentionSm80 = {64, 64, 128, 49152};
constexpr AttentionTile kAttentionSm90 = {128, 176, 384, 212992};

}  // namespace vidk
