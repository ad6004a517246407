// vidk::nvfp4_quantize on CUDA.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/cuda.h"
#include "common/launch_cuda.h"
#include "nvfp4/nvfp4_outputs.h"
#include "nvfp4/nvfp4_plan.h"

namespace vidk {
namespace {

std::tuple<Tensor, Tensor> nvfp4_quantize(const Tensor& x, const std::string& recipe) {
  const char* op = "nvfp4_quantize";
  const Nvfp4Recipe chosen = check_nvfp4_quantize(x, recipe);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Nvfp4Outputs out(x);
  const Nvfp4PlanArgs args{element_of(x), chosen, byte_view(x), out.packed_data(),
                           out.scales_data()};
  launch(op, plan_nvfp4_quantize(args, device_info(op, device)), device);
  return {out.packed, out.scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CUDA, m) { m.impl("nvfp4_quantize", TORCH_BOX(&nvfp4_quantize)); }

}  // namespace vidk
