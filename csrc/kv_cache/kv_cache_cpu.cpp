// vidk::kv_cache_write on the CPU. A pure copy: the element type does not matter, only bytes.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>

#include "common/parallel.h"
#include "kv_cache/kv_cache_check.h"

namespace vidk {
namespace {

// Copies tokens [begin, end) of one batch row; cache rows of successive tokens are successive.
void copy_tokens(const ByteView& x, const ByteView& cache, int64_t b, int64_t begin, int64_t end,
                 int64_t cache_begin) {
  const int64_t token_bytes = x.heads * x.dim;
  if (!x.heads_are_dense() || !cache.heads_are_dense()) {
    for (int64_t i = 0; i < end - begin; ++i) {
      for (int64_t h = 0; h < x.heads; ++h) {
        std::memcpy(cache.row(b, cache_begin + i, h), x.row(b, begin + i, h), x.dim);
      }
    }
  } else if (x.token_stride != token_bytes || cache.token_stride != token_bytes) {
    for (int64_t i = 0; i < end - begin; ++i) {
      std::memcpy(cache.row(b, cache_begin + i, 0), x.row(b, begin + i, 0), token_bytes);
    }
  } else {
    std::memcpy(cache.row(b, cache_begin, 0), x.row(b, begin, 0), (end - begin) * token_bytes);
  }
}

void write_block(const ByteView& x, const ByteView& cache, const int32_t* frame_slot,
                 int64_t frame_tokens) {
  parallel_for(x.batch * x.tokens, 2 * x.heads * x.dim, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / x.tokens;
      const int64_t token = begin % x.tokens;
      const int64_t frame = token / frame_tokens;
      const int64_t in_frame = token % frame_tokens;
      // As far as this thread, this batch row and this frame go: one run in the cache.
      const int64_t count = std::min({end - begin, x.tokens - token, frame_tokens - in_frame});
      copy_tokens(x, cache, b, token, token + count, frame_slot[frame] * frame_tokens + in_frame);
      begin += count;
    }
  });
}

void kv_cache_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                    const Tensor& frame_slot, int64_t frame_tokens) {
  check_kv_cache_write(k, v, k_cache, v_cache, frame_slot, frame_tokens);
  const int32_t* slots = frame_slot.const_data_ptr<int32_t>();
  check_slots("kv_cache_write", slots, k.size(1), frame_tokens, k_cache.size(1));

  const ByteView k_view = byte_view(k);
  if (k_view.empty()) return;
  write_block(k_view, byte_view(k_cache), slots, frame_tokens);
  write_block(byte_view(v), byte_view(v_cache), slots, frame_tokens);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) { m.impl("kv_cache_write", TORCH_BOX(&kv_cache_write)); }

}  // namespace vidk
