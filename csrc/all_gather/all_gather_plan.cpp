#include "all_gather/all_gather_plan.h"

#include "all_gather/all_gather_kernel.h"
#include "rope/rope_plan.h"

namespace vidk {

LaunchPlan plan_all_gather_rope(const GatherPlanArgs& args, const DeviceInfo& device) {
  const ByteView& x = args.x.front();
  LaunchPlan plan = plan_rope_3d({args.element, x, args.chunk, args.grid}, device);
  if (plan.kernel.empty()) return plan;

  GatherParams p{};
  std::memcpy(&p.rope, plan.args.bytes.data(), sizeof(p.rope));
  p.rope.out.data = nullptr;  // each rank's is at its own address
  p.peers = args.peers;
  p.out = args.chunk.data - args.first_rank * x.batch * args.chunk.batch_stride;
  p.offset_step = args.offset_step;
  p.chunk = x.batch * args.chunk.batch_stride;
  p.ranks = static_cast<int32_t>(args.ranks);
  p.first_rank = static_cast<int32_t>(args.first_rank);
  p.local = static_cast<int32_t>(args.x.size());
  for (size_t i = 0; i < args.x.size(); ++i) p.x[i] = args.x[i].data;
  plan.kernel.replace(0, sizeof("vidk_rope_3d") - 1, "vidk_all_gather_rope");
  plan.grid[0] *= static_cast<uint32_t>(args.x.size());
  plan.args = {};
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
