// The launch of kv_cache_write as data.
#pragma once

#include "common/launch_plan.h"
#include "common/tensor_view.h"

namespace vidk {

struct KvCacheWriteArgs {
  ByteView k;
  ByteView v;
  ByteView k_cache;
  ByteView v_cache;
  const int32_t* frame_slot;  // [F], on the device
  int64_t frame_tokens;
};

LaunchPlan plan_kv_cache_write(const KvCacheWriteArgs& args, const DeviceInfo& device);

}  // namespace vidk
