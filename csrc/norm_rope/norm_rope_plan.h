// The launch of qk_norm_rope_kv_write as data.
#pragma once

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"
#include "rope/rope_grid.h"

namespace vidk {

struct NormRopePlanArgs {
  Element element;
  ByteView q;
  ByteView k;
  ByteView v;
  ByteView q_out;
  ByteView k_cache;
  ByteView v_cache;
  const void* q_weight;  // [H * D], the element type of q; all pointers on the device
  const void* k_weight;
  float eps;
  const int32_t* frame_slot;
  RopeGrid grid;
};

LaunchPlan plan_qk_norm_rope_kv_write(const NormRopePlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
