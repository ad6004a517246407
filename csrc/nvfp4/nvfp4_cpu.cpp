// vidk::nvfp4_quantize on the CPU.

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/parallel.h"
#include "nvfp4/nvfp4_outputs.h"
#include "nvfp4/nvfp4_simd.h"

namespace vidk {
namespace {

std::tuple<Tensor, Tensor> nvfp4_quantize(const Tensor& x, const std::string& recipe) {
  const Nvfp4Recipe chosen = check_nvfp4_quantize(x, recipe);
  Nvfp4Outputs out(x);
  const Nvfp4Args args{element_of(x), chosen, byte_view(x), out.packed_data(), out.scales_data()};
  if (!args.x.empty()) {
    parallel_for(
        args.x.batch * args.x.tokens, 2 * args.x.heads * args.x.dim,
        [&](int64_t begin, int64_t end) { VIDK_DISPATCH_ISA(nvfp4_tokens, args, begin, end); });
  }
  return {out.packed, out.scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vidk, CPU, m) { m.impl("nvfp4_quantize", TORCH_BOX(&nvfp4_quantize)); }

}  // namespace vidk
