// vidk::kv_cache_write on CUDA.

#include <torch/csrc/stable/library.h>

#include "common/cuda.h"
#include "common/debug_cuda.h"
#include "common/launch_cuda.h"
#include "kv_cache/kv_cache_check.h"
#include "kv_cache/kv_cache_plan.h"

namespace vidk {
namespace {

void kv_cache_write(const Tensor& k, const Tensor& v, Tensor k_cache, Tensor v_cache,
                    const Tensor& frame_slot, int64_t frame_tokens) {
  const char* op = "kv_cache_write";
  check_kv_cache_write(k, v, k_cache, v_cache, frame_slot, frame_tokens);
  const int32_t device = k.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (const auto slots = values_to_check<int32_t>(frame_slot)) {
    check_slots(op, slots->data(), k.size(1), frame_tokens, k_cache.size(1));
  }
  const KvCacheWriteArgs args{byte_view(k),
                              byte_view(v),
                              byte_view(k_cache),
                              byte_view(v_cache),
                              frame_slot.const_data_ptr<int32_t>(),
                              frame_tokens};
  launch(op, plan_kv_cache_write(args, device_info(op, device)), device);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) { m.impl("kv_cache_write", TORCH_BOX(&kv_cache_write)); }

}  // namespace vidk
