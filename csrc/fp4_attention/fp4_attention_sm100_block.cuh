// What the warps of a thread block share: barriers, tensor memory, and the order of work.
// Torch-free.
#pragma once

#include <cstdint>

#include "common/mbarrier.cuh"
#include "fp4_attention/fp4_attention_sm100_kernel.h"

namespace vidk::fp4_sm100 {

constexpr int kRows = kFp4Sm100Rows;
constexpr int kStages = kFp4Sm100Stages;
constexpr int kMeanTiles = kFp4Sm100MeanTiles;
constexpr int kHeadDim = 128;
// Keys of a tile past its last one are left out in chunks of so many.
constexpr int kChunk = 32;
// O += P V begins when the weights of so many keys are there.
constexpr int kFirstKeys = 96;
constexpr int kSoftmaxWarps = 4;  // of a query tile

struct Barriers {
  Mbarrier queries;
  // Stages are full, and free again.
  Mbarrier keys[kStages], keys_free[kStages], values[kStages], values_free[kStages];
  Mbarrier cut_values;  // of a tile that ends with the cache's length
  // Of each query tile: S is there; it is in registers; P is there, up to kFirstKeys and then the
  // rest; O has it.
  Mbarrier logits[2], logits_read[2], weights[2][2], output[2];
  uint32_t tensor;  // address of tensor memory
};
static_assert(sizeof(Barriers) <= 512);

__device__ constexpr uint32_t logits_column(int x) { return 128 * x; }
__device__ constexpr uint32_t weights_column(int x) { return logits_column(x); }
__device__ constexpr uint32_t scales_column(int x) { return logits_column(1 - x) + 64; }
__device__ constexpr uint32_t output_column(int x) { return 256 + 128 * x; }
constexpr uint32_t kKeyScales = 16;  // columns after those of the queries

// The stage that is used in the n-th place, and the parity of its n-th phase.
struct Stage {
  int index;
  uint32_t parity;
  __device__ explicit Stage(int n) : index(n % kStages), parity(n / kStages & 1) {}
};

struct Block {
  const Fp4Sm100Params& p;
  char* shared;
  Barriers& bar;
  int head, batch;
  int row0;           // first row of q
  int query_tiles;    // that are not past the last row
  int length, tiles;  // of keys
};

__device__ inline int rounded_up(int n, int to) { return (n + to - 1) / to * to; }

// The rounds, one after the other.
struct Round {
  bool means;             // of 32 tiles from `tile` on
  int number = 0;         // rounds before it
  int tile = 0;           // key tiles before it
  int slot = 0, row = 0;  // where its keys begin: the slot, and the row of it

  __device__ explicit Round(const Block& b) : means(b.p.has_means) {}
  __device__ bool exists(const Block& b) const { return tile < b.tiles; }
  __device__ void advance(const Block& b) {
    ++number;
    if (means) {
      means = false;
      return;
    }
    ++tile;
    row += kRows;
    if (row >= b.p.frame_tokens) {
      row = 0;
      ++slot;
    }
    means = b.p.has_means && tile % kMeanTiles == 0;
  }
  // Rows up to the end of the slot, and keys up to the cache's length; at most 128.
  __device__ int rows(const Block& b) const { return min(kRows, b.p.frame_tokens - row); }
  __device__ int keys(const Block& b) const {
    return min(rows(b), b.length - slot * b.p.frame_tokens - row);
  }
};

// Key tiles: every slot begins one.
__device__ inline int tiles_of(int length, const Fp4Sm100Params& p) {
  return length / p.frame_tokens * p.slot_tiles + (length % p.frame_tokens + kRows - 1) / kRows;
}

}  // namespace vidk::fp4_sm100
