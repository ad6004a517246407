// How rows of q and k for FP4 attention share their scales; for every device. Torch-free.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define VIDK_EVERYWHERE __host__ __device__
#else
#define VIDK_EVERYWHERE
#endif

namespace vidk {

// A tile of scales: 128 rows by 4 columns, swizzled as block-scaled instructions read them.
constexpr int64_t kFp4TileRows = 128;
constexpr int64_t kFp4TileBytes = 512;

// Tiles that the rows of one slot take: each slot begins a tile of its own.
VIDK_EVERYWHERE constexpr int64_t fp4_tiles(int64_t rows) {
  return rows / kFp4TileRows + (rows % kFp4TileRows != 0);
}

// Where the four scales of a row lie in a tile.
VIDK_EVERYWHERE constexpr int64_t fp4_scale_offset(int64_t row) {
  return row % 32 * 16 + row / 32 * 4;
}

}  // namespace vidk
