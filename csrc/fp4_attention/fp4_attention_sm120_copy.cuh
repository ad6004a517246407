// How keys, their scales, their means and values come to shared memory, step by step. Device code,
// torch-free.
//
// Memory is in chunks of 16 bytes, and eight chunks that are read at once lie in eight places
// modulo 128 bytes: which of a row's chunks lies where depends on the row.
#pragma once

#include "fp4_attention/fp4_attention_sm120.cuh"
#include "fp4_attention/fp4_attention_sm120_kernel.h"

namespace vidk::sm120 {

// A step of 64 keys or fewer: what is left of a slot, or of its tile of 128 rows.
struct Step {
  int slot_key;  // the slot's first
  int row;       // of the slot
  int tile;      // of scales, of the head: all tiles of the slots before count

  __device__ int first_key() const { return slot_key + row; }
  __device__ bool opens_tile() const { return row % 128 == 0; }
  __device__ int valid(int frame_tokens, int length) const {
    return min(min(frame_tokens, length - slot_key) - row, kFp4Sm120Keys);
  }
  __device__ void advance(int frame_tokens) {
    row += kFp4Sm120Keys;
    if (row >= frame_tokens) {
      slot_key += frame_tokens;
      row = 0;
    }
    tile += opens_tile();
  }
};

template <int kDepth>
struct Nvfp4 {
  static constexpr bool kMxfp8 = false;
  static constexpr int kRowBytes = kDepth / 2;
  static constexpr int kSteps = kDepth / 64;    // instructions for a product
  static constexpr int kGroups = kSteps;        // of four columns of scales
  static constexpr int kColumns = 4 * kGroups;  // of scales
  static constexpr int kScaleBytes = 512 * kGroups;
};

struct Mxfp8 {
  static constexpr bool kMxfp8 = true;
  static constexpr int kRowBytes = 128;
  static constexpr int kSteps = 4;
  static constexpr int kGroups = 1;
  static constexpr int kColumns = 4;
  static constexpr int kScaleBytes = 512;
};

// The place of a chunk of a row of kChunks.
template <int kChunks>
__device__ int swizzle(int row, int chunk) {
  static_assert(kChunks == 4 || kChunks == 6 || kChunks == 8 || kChunks == 16);
  return chunk ^ (kChunks == 4 ? row / 2 % 4 : kChunks == 6 ? row / 4 % 2 : row % 8);
}
// Of the scales of rows r, r + 32, r + 64 and r + 96.
__device__ inline int scale_chunk(int r) { return r ^ (r / 8 * 2); }
// Read as four chunks of each of two means.
__device__ inline int mean_chunk(int tile, int chunk) { return chunk ^ (tile % 2 * 4); }

template <class Format, bool kFp8>
class Copies {
 public:
  static constexpr Fp4Sm120Shared kShared =
      fp4_sm120_shared(Format::kRowBytes, Format::kColumns, kFp8 ? 1 : 2);

  __device__ Copies(const Fp4Sm120Params& p, uint32_t base, int length)
      : p_(p), base_(base), length_(length) {
    const int64_t head = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
    keys_ = p.k_codes + head * p.capacity * Format::kRowBytes;
    scales_ = p.k_scales + head * p.k_tiles * Format::kScaleBytes;
    means_ = p.k_mean + head * p.k_tiles * 256;
    values_ = reinterpret_cast<const uint8_t*>(p.v.data) + blockIdx.z * p.v.batch_stride +
              blockIdx.y * p.v.head_stride;
  }

  // Begins to copy a step, if there is one, and goes on to the next.
  __device__ void next(Step& step, int stage) const {
    if (step.first_key() < length_) {
      const int valid = step.valid(p_.frame_tokens, length_);
      copy_keys(step, stage, valid);
      copy_values(step, stage, valid);
      if (step.opens_tile()) {
        copy_scales(step.tile);
        if (p_.k_mean != nullptr && step.tile % kFp4Sm120MeanTiles == 0) copy_means(step.tile);
      }
      step.advance(p_.frame_tokens);
    }
    commit_copies();
  }

  // Two steps ahead are at most two tiles ahead.
  __device__ uint32_t scales_at(int tile) const {
    return kShared.scales + tile % kFp4Sm120Stages * kShared.scale_slot;
  }

 private:
  static constexpr int kThreads = 32 * kFp4Sm120Warps;

  __device__ void copy_keys(const Step& step, int stage, int valid) const {
    constexpr int kChunks = Format::kRowBytes / 16;
    constexpr int kAll = kFp4Sm120Keys * kChunks;
    const uint8_t* from = keys_ + int64_t{step.first_key()} * Format::kRowBytes;
    const uint32_t to = base_ + stage * kShared.key_stage;
#pragma unroll
    for (int i = threadIdx.x; i < kAll; i += kThreads) {
      const int row = i / kChunks;
      copy_async(to + row * Format::kRowBytes + 16 * swizzle<kChunks>(row, i % kChunks),
                 from + 16 * i, row < valid);
    }
  }

  // Rows that are not valid become zeros: their weights are, but 0 times NaN is not.
  __device__ void copy_values(const Step& step, int stage, int valid) const {
    constexpr int kChunks = kFp8 ? 8 : 16;
    const int chunk = threadIdx.x % kChunks;
    const uint8_t* from = values_ + step.first_key() * p_.v.token_stride + 16 * chunk;
    const uint32_t to = base_ + kShared.values + stage * kShared.value_stage;
#pragma unroll
    for (int i = 0; i < kFp4Sm120Keys * kChunks / kThreads; ++i) {
      const int row = threadIdx.x / kChunks + i * (kThreads / kChunks);
      copy_async(to + 16 * (row * kChunks + swizzle<kChunks>(row, chunk)),
                 from + row * p_.v.token_stride, row < valid);
    }
  }

  __device__ void copy_scales(int tile) const {
    const int i = threadIdx.x;
    if (i >= Format::kScaleBytes / 16) return;
    copy_async(base_ + scales_at(tile) + 16 * (i / 32 * 32 + scale_chunk(i % 32)),
               scales_ + int64_t{tile} * Format::kScaleBytes + 16 * i);
  }

  __device__ void copy_means(int tile) const {
    const int i = threadIdx.x, row = i / 16;
    if (row >= kFp4Sm120MeanTiles) return;
    copy_async(base_ + kShared.means + 256 * row + 16 * mean_chunk(row, i % 16),
               means_ + int64_t{tile} * 256 + 16 * i, tile + row < p_.k_tiles);
  }

  const Fp4Sm120Params& p_;
  uint32_t base_;
  int length_;
  const uint8_t* keys_;
  const uint8_t* scales_;
  const uint8_t* means_;
  const uint8_t* values_;
};

}  // namespace vidk::sm120
