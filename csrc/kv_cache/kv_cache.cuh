// Device code of kv_cache_write: a block of keys and values into its frame slots. Torch-free.
#pragma once

#include <cstdint>

namespace vidk::kv_cache {

// A [B, S, H, D] tensor in bytes; D is contiguous.
struct Rows {
  char* data;
  int64_t batch_stride;
  int64_t token_stride;
  int64_t head_stride;
};

struct Params {
  Rows k, v;
  Rows k_cache, v_cache;
  const int32_t* frame_slot;  // [F]
  int64_t batch;
  int64_t tokens;        // of the block, S
  int64_t frame_tokens;  // of one frame
  int64_t cache_rows;    // S_cap
  int32_t heads;
  int32_t head_vecs;  // vectors of type Vec in one head's D elements
};

// One thread block takes one token at a time and copies its k and v row by vectors of type Vec:
// neighbouring threads touch neighbouring vectors, and both loads are under way before a store.
//
// A row outside the cache is skipped: the slot is data on the device, which nobody could check
// without a synchronisation, and memory outside the cache must never be touched.
template <class Vec>
__global__ void write(const Params p) {
  const int32_t row_vecs = p.heads * p.head_vecs;
  for (int64_t item = blockIdx.x; item < p.batch * p.tokens; item += gridDim.x) {
    const int64_t b = item / p.tokens;
    const int64_t token = item % p.tokens;
    const int64_t slot = p.frame_slot[token / p.frame_tokens];
    // Compared before multiplied: a hostile slot times frame_tokens could overflow.
    if (slot < 0 || slot > p.cache_rows / p.frame_tokens) continue;
    const int64_t row = slot * p.frame_tokens + token % p.frame_tokens;
    if (row >= p.cache_rows) continue;

    const char* k = p.k.data + b * p.k.batch_stride + token * p.k.token_stride;
    const char* v = p.v.data + b * p.v.batch_stride + token * p.v.token_stride;
    char* k_cache = p.k_cache.data + b * p.k_cache.batch_stride + row * p.k_cache.token_stride;
    char* v_cache = p.v_cache.data + b * p.v_cache.batch_stride + row * p.v_cache.token_stride;
    for (int32_t i = threadIdx.x; i < row_vecs; i += blockDim.x) {
      const int64_t head = i / p.head_vecs;
      const int64_t at = static_cast<int64_t>(i % p.head_vecs) * sizeof(Vec);
      const Vec k_vec = *reinterpret_cast<const Vec*>(k + head * p.k.head_stride + at);
      const Vec v_vec = *reinterpret_cast<const Vec*>(v + head * p.v.head_stride + at);
      *reinterpret_cast<Vec*>(k_cache + head * p.k_cache.head_stride + at) = k_vec;
      *reinterpret_cast<Vec*>(v_cache + head * p.v_cache.head_stride + at) = v_vec;
    }
  }
}

}  // namespace vidk::kv_cache
