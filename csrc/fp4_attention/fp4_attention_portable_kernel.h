// The parameters of the kernels that dequantise, for the plan and for the kernels.
#pragma once

#include <cstdint>

#include "common/rows.h"

namespace vidk {

constexpr int32_t kFp4PortableQueries = 128;  // of a thread block
constexpr int32_t kFp4PortableKeys = 64;      // in a buffer, of which there are two
constexpr int32_t kFp4PortableThreads = 256;
constexpr int32_t fp4_portable_shared_bytes(int32_t depth, int32_t dim) {
  return 2 * kFp4PortableKeys * 2 * (depth + dim);
}

// Hopper's: a warpgroup that decodes and two that compute. Two blocks of keys and of values, and
// all queries, fit into shared memory.
constexpr int32_t kFp4Sm90Threads = 384;
constexpr int32_t fp4_sm90_keys(int32_t depth) { return depth <= 192 ? 128 : 64; }

constexpr int32_t fp4_sm90_shared_bytes(int32_t depth, int32_t dim) {
  return kFp4PortableQueries * 2 * depth + 2 * fp4_sm90_keys(depth) * 2 * (depth + dim) +
         8 * 8;  // barriers
}

struct Fp4PortableParams {
  const uint8_t* q_codes;
  const uint8_t* q_scales;
  const uint8_t* k_codes;
  const uint8_t* k_scales;
  Rows q;              // bfloat16; not read without k_mean
  const char* k_mean;  // null: keys have no means
  Rows v;
  char* out;
  float* lse;
  const int32_t* kv_len;
  int64_t head_tiles;  // tiles of scales of a head's keys
  int32_t slot_tiles;  // and of a slot
  int32_t frame_tokens;
  int32_t tokens;
  int32_t capacity;
  float scale;
};

}  // namespace vidk
