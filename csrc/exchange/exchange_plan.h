// The launches of the exchange's ops as data.
#pragma once

#include "common/launch_plan.h"
#include "exchange/exchange_layout.h"
#include "norm_rope/norm_rope_plan.h"

namespace vidk {

struct PackPlanArgs {
  TokenInputs in;
  PackedChunks out;
};

LaunchPlan plan_qk_norm_rope_pack(const PackPlanArgs& args, const DeviceInfo& device);

struct UnpackPlanArgs {
  ByteView k;  // [P * B, S_r, H / P, D], dense
  ByteView v;
  ByteView k_cache;
  ByteView v_cache;
  const int32_t* frame_slot;  // [F], on the device
  ShardLayout layout;
};

LaunchPlan plan_unpack_kv_write(const UnpackPlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
