// Carries out launch plans: the only place that knows how device code is loaded and launched.
#pragma once

#include "common/launch_plan.h"

namespace vidk {

// Asked once per device; `op` is whom an error names.
DeviceInfo device_info(const char* op, int32_t device);

// Launches on torch's current stream of the device, which must be the current one (DeviceGuard).
void launch(const char* op, const LaunchPlan& plan, int32_t device);

}  // namespace vidk
