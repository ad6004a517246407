// The launch of the fused AllGather + RoPE as data.
#pragma once

#include <vector>

#include "common/element.h"
#include "common/launch_plan.h"
#include "common/tensor_view.h"
#include "rope/rope_grid.h"

namespace vidk {

struct GatherPlanArgs {
  Element element;
  std::vector<ByteView> x;  // of the ranks of this launch, which are successive; alike
  ByteView chunk;           // where it goes, in the buffer of the rank itself
  RopeGrid grid;            // of the first of them
  int64_t offset_step;      // token_offset from one rank to the next
  int64_t ranks;
  int64_t first_rank;
  const int64_t* peers;  // on the device, see gather_table()
};

LaunchPlan plan_all_gather_rope(const GatherPlanArgs& args, const DeviceInfo& device);

}  // namespace vidk
