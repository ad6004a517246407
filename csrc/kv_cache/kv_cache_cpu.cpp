// vidk::kv_cache_write on the CPU. A pure copy: the element type does not matter, only bytes.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/parallel.h"
#include "kv_cache/kv_cache_check.h"
#include "kv_cache/kv_cache_copy.h"

namespace vidk {
namespace {

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
      copy_tokens({x, b, token}, {cache, b, frame_slot[frame] * frame_tokens + in_frame}, count);
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
