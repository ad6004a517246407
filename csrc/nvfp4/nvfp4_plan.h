// The launch of nvfp4_quantize as data.
#pragma once

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"
#include "nvfp4/nvfp4_recipe.h"

namespace vidk {

struct Nvfp4PlanArgs {
  Element element;
  Nvfp4Recipe recipe;
  ByteView x;
  uint8_t* packed;
  uint8_t* scales;
};

LaunchPlan plan_nvfp4_quantize(const Nvfp4PlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
