// The parameters of nvfp4_quantize's device code, for the plan and for the kernel.
#pragma once

#include <cstdint>

#include "common/rows.h"

namespace vidk {

constexpr int kNvfp4Threads = 256;
constexpr int kNvfp4Chunks = 4;  // of 16 bytes: what a thread has under way
constexpr int kNvfp4WarpBytes = 32 * 16 * kNvfp4Chunks;

// Where a block of 16 elements lies, or how far the next one is.
struct Nvfp4Place {
  int64_t batch;
  int64_t token;
  int64_t head;
  int64_t block;  // of the head's D / 16
};

struct Nvfp4Params {
  Rows x;
  uint8_t* packed;  // dense
  uint8_t* scales;  // dense
  int64_t blocks;   // in all
  Nvfp4Place size;
  Nvfp4Place step;  // from one chunk of a lane to its next
};

}  // namespace vidk
