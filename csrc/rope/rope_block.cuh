// The rotation of a tile of tokens, for every kernel that stores rotated tokens somewhere. Device
// code, torch-free.
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "rope/rope_angles.cuh"
#include "rope/rope_kernel.h"

namespace vidk::rope {

extern __shared__ float4 shared_angles[];

// Fills cos and sin, [tokens, pairs], with the angles of a tile. A thread has one pair and reads a
// table only where the pair's row changes: the time row hardly ever does within a tile, the row
// of the grid rarely.
inline __device__ void stage_angles(const RopeGrid& grid, const TokenPosition* position, int tokens,
                                    int64_t first_pair, int pairs, int row_floats, float* cos,
                                    float* sin) {
  constexpr int kTogether = 4;
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
    const PairAngles angles(grid, first_pair + pair);
    float2 angle = make_float2(0.0f, 0.0f);
    int64_t last = kNoPosition;
    for (int t0 = 0; t0 < tokens; t0 += kTogether) {
      // Loads first, all independent; then who takes which.
      float2 loaded[kTogether];
      bool is_new[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        loaded[i] = make_float2(0.0f, 0.0f);
        is_new[i] = false;
        if (t0 + i < tokens && position[t0 + i].is_rotated()) {
          const int64_t row = position[t0 + i].band[angles.band];
          is_new[i] = row != last;
          if (is_new[i]) loaded[i] = angles.at(row);
          last = row;
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (is_new[i]) angle = loaded[i];
        if (t0 + i < tokens) {
          cos[(t0 + i) * row_floats + pair] = angle.x;
          sin[(t0 + i) * row_floats + pair] = angle.y;
        }
      }
    }
  }
}

// The rows (token, head) of a tile that one thread visits, `pass_heads` apart.
struct Cursor {
  int token, head;

  __device__ void advance(int tokens_per_step, int heads_per_step, int heads) {
    token += tokens_per_step;
    head += heads_per_step;
    if (head >= heads) {
      head -= heads;
      ++token;
    }
  }
};

// A thread stays on one vector of D and goes from head to head and token to token; neighbouring
// threads touch neighbouring vectors. The first loads of x are issued before the angles are looked
// for, so that memory is busy from the start.
//
// `tile` is which of the grid's this block does. `meanwhile()` runs while the first loads are under
// way. `store(vector, at)` takes what is rotated; `at` is its address in p.out.
template <class Format, int kAccess, class Meanwhile, class Store>
__device__ void rotate(const RopeParams& p, int64_t tile, Meanwhile&& meanwhile, Store&& store) {
  using Vec = Vector<Format, kAccess>;
  constexpr int kPairs = Vec::kPairs;
  __shared__ TokenPosition position[kRopeMaxTokens];
  const int row_floats = p.tile_vecs * kPairs;
  float* const cos = reinterpret_cast<float*>(shared_angles);
  float* const sin = cos + p.tile_tokens * row_floats;
  const int first_row = static_cast<int>(threadIdx.x) / p.tile_vecs;
  const int vec = static_cast<int>(threadIdx.x) - first_row * p.tile_vecs;

  int64_t rest = tile;
  int64_t first_vec = 0;
  int64_t first_head = 0;
  if (p.vec_tiles > 1) {
    first_vec = rest % p.vec_tiles * p.tile_vecs;
    rest /= p.vec_tiles;
  }
  if (p.head_tiles > 1) {
    first_head = rest % p.head_tiles * p.tile_heads;
    rest /= p.head_tiles;
  }
  const int64_t batch = static_cast<uint64_t>(rest) / static_cast<uint64_t>(p.token_tiles);
  const int64_t first_token = (rest - batch * p.token_tiles) * p.tile_tokens;
  const int tokens = static_cast<int>(min(int64_t{p.tile_tokens}, p.tokens - first_token));
  const int heads = static_cast<int>(min(int64_t{p.tile_heads}, p.heads - first_head));
  const int vecs = static_cast<int>(min(int64_t{p.tile_vecs}, p.head_vecs - first_vec));
  const bool is_active = vec < vecs && first_row < p.pass_heads;
  const int64_t at = (first_vec + vec) * Vec::kBytes;
  const char* const x = p.x.data + batch * p.x.batch_stride + first_token * p.x.token_stride +
                        first_head * p.x.head_stride + at;
  char* const out = p.out.data + batch * p.out.batch_stride + first_token * p.out.token_stride +
                    first_head * p.out.head_stride + at;

  const int token_step = p.pass_heads / heads;
  const int head_step = p.pass_heads - token_step * heads;
  Cursor row;
  row.token = first_row / heads;
  row.head = first_row - row.token * heads;
  Vec t[kRopeUnroll];
  const auto load = [&](Cursor from) {
#pragma unroll
    for (int i = 0; i < kRopeUnroll; ++i) {
      t[i].clear();
      if (is_active && from.token < tokens) {
        t[i].load_once(x + from.token * p.x.token_stride + from.head * p.x.head_stride);
      }
      from.advance(token_step, head_step, heads);
    }
  };

  load(row);
  meanwhile();
  if (threadIdx.x < static_cast<unsigned>(tokens)) {
    position[threadIdx.x] = locate(p.grid, first_token + threadIdx.x);
  }
  __syncthreads();
  stage_angles(p.grid, position, tokens, first_vec * kPairs, vecs * kPairs, row_floats, cos, sin);
  __syncthreads();
  while (is_active && row.token < tokens) {
#pragma unroll
    for (int i = 0; i < kRopeUnroll; ++i) {
      if (row.token < tokens) {
        // A token without angles passes bit for bit.
        if (position[row.token].is_rotated()) {
          float c[kPairs], s[kPairs];
          load_shared(cos + row.token * row_floats + vec * kPairs, c);
          load_shared(sin + row.token * row_floats + vec * kPairs, s);
#pragma unroll
          for (int j = 0; j < kPairs; ++j) t[i].set_pair(j, rotated(t[i].pair(j), c[j], s[j]));
        }
        store(t[i], out + row.token * p.out.token_stride + row.head * p.out.head_stride);
      }
      row.advance(token_step, head_step, heads);
    }
    load(row);
  }
}

}  // namespace vidk::rope
