// What the two kernels of qk_norm_rope_nvfp4_kv_write share: tiles of keys, and the tokens in them.
// Device code, torch-free.
#pragma once

#include <cstdint>

#include "fp4_kv/fp4_kv_kernel.h"
#include "norm_rope/norm_rope_block.cuh"

namespace vidk::fp4_kv {

using Vec = Vector<BFloat16, 16>;

// One tile of keys: of a frame of the block, and of that frame's slot.
struct Tile {
  int32_t batch, frame, tile;
  int32_t rows;
  int64_t slot;  // negative: no such slot, and nothing is written there

  __device__ Tile(const Fp4KvParams& p, uint32_t item) {
    const uint32_t tiles = p.frame_tiles;
    const uint32_t frames = p.frames;
    const uint32_t in_all = item / tiles;
    tile = item - in_all * tiles;
    batch = in_all / frames;
    frame = in_all - batch * frames;
    rows = min(static_cast<int32_t>(kFp4TileRows), p.frame_tokens - first_row());
    slot = __ldg(p.frame_slot + frame);
    if (slot >= p.slots) slot = -1;
  }

  // Its place among all heads' tiles of the cache.
  __device__ int64_t cache_tile(const Fp4KvParams& p, int head) const {
    return (batch * p.heads + head) * p.k_to.tiles + slot * p.frame_tiles + tile;
  }
  __device__ int64_t cache_row(const Fp4KvParams& p, int tile_row) const {
    return slot * p.frame_tokens + first_row() + tile_row;
  }
  // The rows that its mean is taken over, and whether one of them is a given row.
  __device__ int sample(int i) const { return i * rows / static_cast<int>(kFp4Samples); }
  __device__ bool is_sample(int tile_row) const {
    const int i = (tile_row * static_cast<int>(kFp4Samples) + rows - 1) / rows;
    return i < kFp4Samples && sample(i) == tile_row;
  }
  __device__ int32_t first_row() const { return tile * static_cast<int32_t>(kFp4TileRows); }
};

// One of the tile's tokens after another, in any order.
struct TileToken : norm_rope::GridToken<int32_t> {
  __device__ TileToken(const Fp4KvParams& p, const Tile& tile, int tile_row) {
    batch = tile.batch;
    frame = tile.frame;
    time = time_row(p.grid, frame);
    row = -1;
    seek(p, tile, tile_row);
    new_bands = kAllBands;
  }

  __device__ void seek(const Fp4KvParams& p, const Tile& tile, int tile_row) {
    const uint32_t in_frame = tile.first_row() + tile_row;
    const uint32_t width = p.grid.width;
    const int32_t new_row = in_frame / width;
    new_bands = new_row == row ? kColumn : kRow | kColumn;
    row = new_row;
    col = in_frame - row * width;
    token = frame * p.frame_tokens + in_frame;
  }
};

// A thread's place in its group: its vector of a head, and its first head.
struct Place {
  int group, thread, vec, first_head;

  __device__ Place(const Fp4KvParams& p, int in_block) {
    group = in_block / p.group_threads;
    thread = in_block - group * p.group_threads;
    vec = thread % kFp4KvHeadVecs;
    first_head = thread / kFp4KvHeadVecs;
  }
  __device__ bool has(const Fp4KvParams& p, int i) const {
    return first_head < p.pass_heads && head(p, i) < p.heads;
  }
  __device__ int head(const Fp4KvParams& p, int i) const { return first_head + i * p.pass_heads; }
  __device__ int channel(const Fp4KvParams& p, int i) const {
    return head(p, i) * kFp4KvDim + vec * 8;
  }
  __device__ int warps(const Fp4KvParams& p) const { return p.group_threads / 32; }

  // All threads of the group have arrived.
  __device__ void sync(const Fp4KvParams& p) const {
    asm volatile("bar.sync %0, %1;" : : "r"(group + 1), "r"(p.group_threads) : "memory");
  }
};

template <int kVecs>
__device__ void clear(Vec (&t)[kVecs]) {
#pragma unroll
  for (Vec& vec : t) vec.clear();
}

template <int kVecs>
__device__ void load(Vec (&t)[kVecs], const Fp4KvParams& p, const Place& at, const PassRows& x,
                     const TileToken& token) {
  const char* from = x.data + norm_rope::row_offset(x, token.batch, token.token) +
                     at.first_head * x.head_stride + at.vec * Vec::kBytes;
  clear(t);
#pragma unroll
  for (int i = 0; i < kVecs; ++i) {
    if (at.has(p, i)) t[i].load_once(from);
    from += x.pass_stride;
  }
}

// The thread's angles of a token, from where its group has put them.
__device__ inline void load_angles(const float* staged, bool is_rotated, int vec,
                                   float (&cos)[Vec::kPairs], float (&sin)[Vec::kPairs]) {
  norm_rope::set_identity(cos, sin);
  if (is_rotated) {
    load_shared(staged + vec * Vec::kPairs, cos);
    load_shared(staged + kFp4KvPairs + vec * Vec::kPairs, sin);
  }
}

}  // namespace vidk::fp4_kv
