#include "tensor_memory.h"

namespace ptxsim {

void check_finished(Cta& cta) {
  if (cta.tensor) cta.tensor->check_finished();
  if (!cta.async) return;
  for (size_t w = 0; w < cta.warps.size(); ++w) {
    const Cta::AsyncState::PerWarp& state = cta.async->warp[w];
    const std::string of = " of warp " + std::to_string(w);
    if (!state.stores.empty()) {
      throw Fault("async", "the block ends before a bulk copy" + of + " out of its shared memory");
    }
    if (!state.products.empty()) {
      throw Fault("async", "the block ends before a wgmma.mma_async" + of + " is waited for");
    }
    if (!state.copies.empty()) {
      cta.warps[w].warn("a block ends before some cp.async is waited for");
    }
  }
}

}  // namespace ptxsim
