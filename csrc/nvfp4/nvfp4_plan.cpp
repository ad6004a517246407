#include "nvfp4/nvfp4_plan.h"

#include <string>

#include "common/access.h"
#include "common/ceil_div.h"
#include "nvfp4/nvfp4_kernel.h"

namespace vidk {
namespace {

const char* recipe_name(Nvfp4Recipe recipe) {
  switch (recipe) {
    case Nvfp4Recipe::kPlain:
      return "plain";
    case Nvfp4Recipe::kFourOverSix:
      return "46";
    case Nvfp4Recipe::kSearch:
      break;
  }
  return "search";
}

}  // namespace

LaunchPlan plan_nvfp4_quantize(const Nvfp4PlanArgs& args, const DeviceInfo&) {
  LaunchPlan plan;
  const ByteView& x = args.x;
  if (x.empty()) return plan;
  const int element_bytes = args.element == Element::kFloat32 ? 4 : 2;
  const int access = access_bytes({x}) == 16 ? 16 : element_bytes;
  const int64_t block_bytes = element_bytes * kNvfp4Block;
  const int64_t head_blocks = x.dim / block_bytes;

  Nvfp4Params p{};
  p.x = rows_of(x);
  p.packed = args.packed;
  p.scales = args.scales;
  p.blocks = x.batch * x.tokens * x.heads * head_blocks;
  p.size = {x.batch, x.tokens, x.heads, head_blocks};
  const int64_t warp_blocks = kNvfp4WarpBytes / block_bytes;
  int64_t step = warp_blocks / kNvfp4Chunks;
  p.step.block = step % head_blocks;
  step /= head_blocks;
  p.step.head = step % x.heads;
  step /= x.heads;
  p.step.token = step % x.tokens;
  p.step.batch = step / x.tokens;

  plan.kernel = std::string("vidk_nvfp4_quantize_") + recipe_name(args.recipe) + "_" +
                element_name(args.element) + "_" + std::to_string(access) + "B";
  const int64_t tile = kNvfp4Threads / 32 * warp_blocks;
  plan.grid[0] = static_cast<uint32_t>(ceil_div(p.blocks, tile));
  plan.block[0] = kNvfp4Threads;
  plan.args.add(p);
  return plan;
}

}  // namespace vidk
