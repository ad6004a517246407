// The blocks of keys of a cache whose slots begin tiles of their own. Torch-free.
#pragma once

#include <cstdint>

#include "common/fp4_layout.h"
#include "fp4_attention/fp4_attention_portable_kernel.h"

namespace vidk::fp4 {

constexpr int kHeadDim = 128;  // of q, means, v and the output
constexpr int kTileRows = kFp4TileRows;

// What one thread block works on.
struct Keys {
  int length;
  int frame_tokens;
  int slot_tiles;

  __device__ explicit Keys(const Fp4PortableParams& p)
      : length(max(0, min(__ldg(p.kv_len), p.capacity))),
        frame_tokens(p.frame_tokens),
        slot_tiles(p.slot_tiles) {}

  // Blocks, or tiles, of `rows` keys at most.
  __device__ int blocks(int rows) const {
    return length / frame_tokens * ceil_div(frame_tokens, rows) +
           ceil_div(length % frame_tokens, rows);
  }
  static __device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
};

// A block of up to kRows keys of one tile, so that they share a mean.
template <int kRows>
struct KeyBlock {
  int slot_key = 0;   // first key of the slot
  int slot_tile = 0;  // first tile of the slot
  int row = 0;        // of the slot, where the block begins

  // Keys that are there: not those past the slot's end or the cache's length. None, or fewer, after
  // the last block.
  __device__ int count(const Keys& keys) const {
    return min(kRows, min(keys.frame_tokens, keys.length - slot_key) - row);
  }
  __device__ int key() const { return slot_key + row; }
  __device__ int tile() const { return slot_tile + row / kTileRows; }
  __device__ int tile_row() const { return row % kTileRows; }

  __device__ KeyBlock next(const Keys& keys) const {
    if (row + kRows < keys.frame_tokens) return {slot_key, slot_tile, row + kRows};
    return {slot_key + keys.frame_tokens, slot_tile + keys.slot_tiles, 0};
  }
};

// The scale of logits, whose sign the products of a negative one get from q: so the greatest
// product has the greatest weight. A scale of zero must not meet an infinite logit.
struct LogitScale {
  float size;
  uint32_t flip;  // of the signs of two bfloat16
  float sign;

  __device__ explicit LogitScale(float scale)
      : size(scale == 0 ? 1e-30f : fabsf(scale)),
        flip(scale < 0 ? 0x80008000u : 0),
        sign(scale < 0 ? -1.0f : 1.0f) {}
};

// Where the codes, scales and values of a head begin.
template <class Format>
struct Head {
  const uint8_t* q_codes;
  const uint8_t* q_scales;
  const uint8_t* k_codes;
  const uint8_t* k_scales;
  const char* v;

  static constexpr int kTileBytes = Format::kScaleCols / 4 * kFp4TileBytes;

  __device__ Head(const Fp4PortableParams& p, int64_t batch, int64_t head, int64_t heads) {
    const int64_t at = batch * heads + head;
    q_codes = p.q_codes + at * p.tokens * Format::kRowBytes;
    q_scales = p.q_scales + at * ((p.tokens + kTileRows - 1) / kTileRows) * kTileBytes;
    k_codes = p.k_codes + at * p.capacity * Format::kRowBytes;
    k_scales = p.k_scales + at * p.head_tiles * kTileBytes;
    v = p.v.data + batch * p.v.batch_stride + head * p.v.head_stride;
  }
};

}  // namespace vidk::fp4
