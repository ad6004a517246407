// vidk::kv_cache_write on CUDA: checks, vector width and launch.

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "common/cuda.h"
#include "kv_cache/kv_cache.cuh"
#include "kv_cache/kv_cache_check.h"

namespace vidk {
namespace {

kv_cache::Rows rows_of(const ByteView& x) {
  return {x.data, x.batch_stride, x.token_stride, x.head_stride};
}

// Bits that an address or a stride of a dimension with more than one entry has set: the lowest one
// bounds the vector width.
uint64_t alignment_bits(const ByteView& x) {
  uint64_t bits = reinterpret_cast<uintptr_t>(x.data) | static_cast<uint64_t>(x.dim);
  if (x.batch > 1) bits |= static_cast<uint64_t>(x.batch_stride);
  if (x.tokens > 1) bits |= static_cast<uint64_t>(x.token_stride);
  if (x.heads > 1) bits |= static_cast<uint64_t>(x.head_stride);
  return bits;
}

template <class Vec>
void launch(kv_cache::Params p, int64_t head_bytes, cudaStream_t stream) {
  p.head_vecs = static_cast<int32_t>(head_bytes / static_cast<int64_t>(sizeof(Vec)));
  const int64_t row_vecs = static_cast<int64_t>(p.heads) * p.head_vecs;
  const int64_t warps = std::clamp<int64_t>((row_vecs + 31) / 32, 1, 8);
  const int64_t blocks = std::min<int64_t>(p.batch * p.tokens, INT32_MAX);
  kv_cache::write<Vec>
      <<<static_cast<unsigned>(blocks), static_cast<unsigned>(32 * warps), 0, stream>>>(p);
}

void kv_cache_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                    const Tensor& frame_slot, int64_t frame_tokens) {
  const char* op = "kv_cache_write";
  check_kv_cache_write(k, v, k_cache, v_cache, frame_slot, frame_tokens);
  const ByteView views[] = {byte_view(k), byte_view(v), byte_view(k_cache), byte_view(v_cache)};
  const ByteView& block = views[0];
  if (block.empty() || k_cache.size(1) == 0) return;
  if (block.dim > INT32_MAX / block.heads) {
    fail(op, "k",
         "rows of " + std::to_string(block.heads) + " x " + std::to_string(block.dim) + " bytes",
         "rows below 2 GiB");
  }
  uint64_t bits = 0;
  for (const ByteView& view : views) bits |= alignment_bits(view);

  const int32_t device = k.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  const kv_cache::Params p = {rows_of(views[0]),
                              rows_of(views[1]),
                              rows_of(views[2]),
                              rows_of(views[3]),
                              frame_slot.const_data_ptr<int32_t>(),
                              block.batch,
                              block.tokens,
                              frame_tokens,
                              k_cache.size(1),
                              static_cast<int32_t>(block.heads),
                              0};
  if (bits % 16 == 0) {
    launch<uint4>(p, block.dim, stream);
  } else if (bits % 8 == 0) {
    launch<uint2>(p, block.dim, stream);
  } else if (bits % 4 == 0) {
    launch<uint32_t>(p, block.dim, stream);
  } else {
    launch<uint16_t>(p, block.dim, stream);
  }
  check_launch(op, device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) { m.impl("kv_cache_write", TORCH_BOX(&kv_cache_write)); }

}  // namespace vidk
