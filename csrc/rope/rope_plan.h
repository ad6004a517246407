// The launch of rope_3d as data.
#pragma once

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"
#include "rope/rope_grid.h"

namespace vidk {

struct RopePlanArgs {
  Element element;
  ByteView x;
  ByteView out;
  RopeGrid grid;  // pointers on the device
};

LaunchPlan plan_rope_3d(const RopePlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
